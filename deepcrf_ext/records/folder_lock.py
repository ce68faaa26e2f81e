"""Folders that one process alone writes to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcrf_ext.errors import InputError


def lock_folder(folder: Path) -> int:
    """An open descriptor of a folder: until it is closed, or this process ends, no other process
    gets one.

    Raises InputError where another has it. A file system without locks stops nobody.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"output: {folder} is being written by another process; must be a folder of its own, "
            "or wait for the other to end"
        ) from error
    except OSError:
        pass
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process gets `lock_folder` of a folder. Raises InputError as that does."""
    descriptor = lock_folder(folder)
    try:
        yield
    finally:
        os.close(descriptor)
