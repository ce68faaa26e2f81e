"""Running a command: errors as one line, with an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from deepcrf_ext.cli.streams import lasting_streams
from deepcrf_ext.errors import InputError, TrainingError, reason

# Of a home folder that cannot be written to, matplotlib would tell as it is loaded.
logging.getLogger("matplotlib").addHandler(logging.NullHandler())

EXIT_TRAINING = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


def describe(error: OSError) -> str:
    """An error of the system in words: the file, where it is known, and what is the matter."""
    named = error.strerror is not None and error.filename is not None
    return f"{error.filename}: {error.strerror}" if named else reason(error)


def run_command(
    body: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> int:
    """Runs the body of a command on its arguments, those of the process for None; returns its exit
    code.

    Bad input and failing files end in one `error:` line on stderr and code 2, a training that
    cannot go on in code 1, Ctrl-C in code 130. No work ends as nobody reads what it prints.
    """
    # Of every tag of a GeoTIFF that it does not know, OpenCV would tell.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    with lasting_streams():
        try:
            code = body(sys.argv[1:] if argv is None else argv) or 0
            sys.stdout.flush()
            return code
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_TRAINING
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_INPUT
        except OSError as error:
            print(f"error: {describe(error)}", file=sys.stderr)
            return EXIT_INPUT
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
