"""Fitting laws to cells, choosing one on held-out cells, calibrating its intervals."""
