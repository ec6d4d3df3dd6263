"""Predictions from a fitted predictor.json: laws, intervals, costs, advice. Standard library only."""
