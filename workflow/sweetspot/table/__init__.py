"""Reading tables of measurements as people have them: files, columns, units, checks, cells."""
