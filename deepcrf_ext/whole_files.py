"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from deepcrf_ext.errors import InputError, reason

_LONGEST_NAME = 143  # bytes that every file system takes; most take 255


def make_folder(folder: Path) -> None:
    """Makes the folder that --output names, where there is none. Raises InputError where it cannot
    be made, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else reason(error)
        raise InputError(
            f"output: {folder} cannot be written ({why}); choose another folder"
        ) from error


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends without an error.

    Until then an earlier file at `path` stays as it is, also when the machine crashes. Raises
    OSError naming a file when it cannot be written.
    """
    # One name, so that what a killed process left behind is written over.
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that is read-only also where there is no such file
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole."""
    with write_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON, whole. Raises ValueError for NaN and infinities."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _temporary_name(name: str) -> str:
    whole = f".{name}.partial"
    if len(os.fsencode(whole)) <= _LONGEST_NAME:
        return whole
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.partial"
