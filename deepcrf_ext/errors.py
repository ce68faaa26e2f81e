"""Errors that a command reports in one line instead of a traceback, and what others say."""


class InputError(ValueError):
    """A file, a data set or a setting that cannot be used; the message names it and says why."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what is kept."""


def reason(error: BaseException) -> str:
    """What an error says; of one of the system, without its number and its file."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
