"""Layers over the operators."""
