"""Measuring cells beside an engine: the protocol, visits, the journal and raw samples. Standard library only."""
