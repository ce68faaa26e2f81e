"""Numbers that the whole package agrees on."""

IGNORE_INDEX = 255
"""The label of pixels and nodes that count nowhere: not in a loss, not in a score."""
