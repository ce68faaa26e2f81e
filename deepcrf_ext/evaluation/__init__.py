"""Predictions and how good they are: of regions, outlines and probabilities; searches."""
