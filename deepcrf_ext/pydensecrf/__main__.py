"""Runs a script that imports pydensecrf, unchanged, on this package.

python -m deepcrf_ext.pydensecrf [--device cuda] SCRIPT [ARGUMENTS ...]
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from pathlib import Path

from deepcrf_ext.pydensecrf import install


def main() -> None:
    """Installs the package under the names of pydensecrf and runs the script of the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m deepcrf_ext.pydensecrf",
        description="Run a script that imports pydensecrf on deepcrf_ext instead.",
    )
    parser.add_argument("--device", default="cpu", help='"cpu" (default), "cuda", "cuda:1".')
    parser.add_argument("script", help="The script, a Python file.")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="The script's own arguments.")
    options = parser.parse_args()
    if not Path(options.script).is_file():
        parser.error(f"{options.script}: no such file")
    try:
        install(device=options.device)
    except ValueError as error:
        parser.error(str(error))
    # As `python SCRIPT` does: its folder is searched first, and it sees its own arguments alone.
    sys.path[0] = str(Path(options.script).resolve().parent)
    sys.argv = [options.script, *options.arguments]
    with tempfile.TemporaryDirectory() as folder:
        # Processes that the script spawns begin anew, with these paths.
        Path(folder, "pydensecrf.py").write_text(
            "from deepcrf_ext.pydensecrf import install\n"
            f"install(device={options.device!r}, replace=True)\n"
        )
        sys.path.insert(1, folder)
        runpy.run_path(options.script, run_name="__main__")


if __name__ == "__main__":
    main()
