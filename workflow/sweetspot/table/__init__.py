"""Tables of measurements in the formats people use: files, columns, units, checks, cells."""
