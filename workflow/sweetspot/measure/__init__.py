"""Measuring cells: the protocol, visits, the journal and raw samples. Standard library only."""
