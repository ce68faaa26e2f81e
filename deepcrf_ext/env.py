"""What a bug report needs: `python -m deepcrf_ext.env`."""

from __future__ import annotations

import sys

from deepcrf_ext.records.environment import environment


def main() -> int:
    """Print the facts; 0, or 1 where the compiled extension is missing."""
    facts, complete = environment()
    column = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{column}}" + value.replace("\n", "\n" + " " * column))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
