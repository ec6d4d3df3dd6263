"""Campaigns: configuration, cells and jobs, plans, cost and progress, datasets."""
