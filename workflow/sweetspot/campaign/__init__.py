"""From a configuration to cells, jobs, plans and datasets."""
