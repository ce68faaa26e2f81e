"""Errors that a command reports in one line instead of a traceback."""


class InputError(ValueError):
    """A file, a data set or a setting that cannot be used; the message names it and says why."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what is kept."""
