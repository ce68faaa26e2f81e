"""What a bug report needs: `python -m deepcrf_ext.env`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deepcrf_ext.cli.running import run_command
from deepcrf_ext.records.environment import environment


def _run(argv: Sequence[str]) -> int:
    argparse.ArgumentParser(
        prog="python -m deepcrf_ext.env",
        description="Print what was built and what is used: versions, processors, the extension. "
        "The exit code is 1 where the extension is missing.",
    ).parse_args(argv)
    facts, complete = environment()
    column = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{column}}" + value.replace("\n", "\n" + " " * column))
    return 0 if complete else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the facts; returns the exit code: 0, or 1 where the compiled extension is missing."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
