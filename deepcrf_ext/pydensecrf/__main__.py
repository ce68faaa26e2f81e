"""Runs a script that imports pydensecrf, unchanged, on this package.

python -m deepcrf_ext.pydensecrf [--device cuda] SCRIPT [ARGUMENTS ...]
python -m deepcrf_ext.pydensecrf [--device cuda] -m MODULE [ARGUMENTS ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from deepcrf_ext.pydensecrf import install


def main() -> None:
    """Installs the package under the names of pydensecrf and runs the script of the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m deepcrf_ext.pydensecrf",
        description="Run a script that imports pydensecrf on deepcrf_ext instead.",
    )
    parser.add_argument("--device", default="cpu", help='"cpu" (default), "cuda", "cuda:1".')
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="The script is a module, as of python -m."
    )
    parser.add_argument("script", help="The script, a Python file.")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="The script's own arguments.")
    options = parser.parse_args()
    script: str = options.script
    # As `python SCRIPT` does: its folder is searched first, and it sees its own arguments alone.
    sys.path[0] = os.getcwd() if options.is_module else os.path.dirname(os.path.realpath(script))
    sys.argv = [script, *options.arguments]
    try:
        install(device=options.device)
    except ValueError as error:
        parser.error(str(error))
    if options.is_module and not _is_module(script):
        parser.error(f"{script}: no such module")
    if not options.is_module and not Path(script).is_file():
        parser.error(f"{script}: no such file")
    if options.is_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):  # a package that it would be in
            return False
        raise


if __name__ == "__main__":
    main()
