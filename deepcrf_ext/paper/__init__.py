"""The parts of `python -m deepcrf_ext.reproduce`."""
