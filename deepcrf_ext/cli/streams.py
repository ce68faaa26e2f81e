"""Standard output and error that end no work: closed, or read by a program that has ended."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import Any


class _Unbreakable:
    """A stream whose reader may go away, as `head` does: what is written then goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes as a file does."""
        with self._outlived():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes as a file does."""
        with self._outlived():
            self._stream.flush()

    @contextlib.contextmanager
    def _outlived(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.lead_nowhere()

    def lead_nowhere(self) -> None:
        """Drops what is written from now on, and what is still in the buffer."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it, writing to sys.stdout and sys.stderr goes on when they are closed or nobody reads
    them; characters that stdout cannot write, as of names of files, are escaped."""
    kept = sys.stdout, sys.stderr
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # A stream is None where the shell has closed it, as by >&-.
    streams = [
        _Unbreakable(stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")) for stream in kept
    ]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
        for stream, given in zip(streams, kept, strict=True):
            try:
                stream.flush()
            except OSError:  # such as a full disk, which the interpreter would tell once more
                stream.lead_nowhere()
            if given is None:
                stream.close()
