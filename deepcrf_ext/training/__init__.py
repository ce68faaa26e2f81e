"""The parts of the training command."""
