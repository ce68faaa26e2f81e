"""What only the commands need: the extra `train`, and one line where something of it is missing."""

from __future__ import annotations

import importlib
import sys
from types import TracebackType
from typing import Any

from deepcrf_ext.errors import InputError

EXTRA = {
    "cv2": "opencv-python-headless",
    "jinja2": "jinja2",
    "jsonargparse": "jsonargparse[signatures]",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tifffile": "tifffile",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
"""Modules of the extra `train`, with the names under which pip knows them."""


class MissingLibraryError(InputError, ImportError):
    """A library of the extra `train` cannot be imported; the message says what to install."""


def advice(error: ImportError) -> str | None:
    """What to install where an import failed; None for a module that is not of the extra."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA:
        return None
    if isinstance(error, ModuleNotFoundError):
        return f"{module} is not installed: pip install 'deepcrf_ext[train]'"
    reason = " ".join(str(error).split())
    fix = f"pip install --force-reinstall '{EXTRA[module]}'"
    return f"{module} cannot be loaded ({reason}): {fix}"


def require(name: str) -> Any:
    """The module of a library. Raises MissingLibraryError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = advice(error if error.name else ImportError(str(error), name=name))
        if text is None:
            raise
        raise MissingLibraryError(text) from error


class _Lazy:
    """A module that is imported at its first use, so that `--help` and the rest work without."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(require(self._name), attribute)


cv2: Any = _Lazy("cv2")
"""OpenCV. Some of its wheels need libraries of a display (libGL), which slim machines lack."""
tifffile: Any = _Lazy("tifffile")
yaml: Any = _Lazy("yaml")


def end_in_one_line() -> None:
    """Let a command, `python -m deepcrf_ext.NAME`, end in one line where a library is missing, with
    code 2, and on Ctrl-C while libraries load, with code 130.

    Its module imports them before it can catch anything, so the line is written by the
    interpreter's hook for uncaught errors. Does nothing in any other program.
    """
    if sys.argv[:1] != ["-m"]:  # so it reads while the package of such a module is imported
        return
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if not command.startswith("deepcrf_ext."):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            raise SystemExit(130)
        text = advice(error) if isinstance(error, ImportError) else None
        if text is None:
            sys.__excepthook__(kind, error, trace)
            return
        print(f"error: python -m {command}: {text}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = hook
