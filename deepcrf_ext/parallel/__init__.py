"""Devices, the processes that work together, and batch normalisation over them."""
