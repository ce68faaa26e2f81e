"""`python -m deepcrf_ext`: which commands there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deepcrf_ext.cli.running import run_command
from deepcrf_ext.errors import InputError

COMMANDS = {
    "train": "trains a CRF whose potentials are networks",
    "evaluate": "measures a checkpoint on a split, before and after the CRF",
    "predict": "segments images",
    "refine": "sharpens masks of any model by a dense CRF",
    "data": "shows what training would see of a data set, and which files cannot be used",
    "tune_dense_crf": "searches the parameters of the dense CRF",
    "calibrate": "fits the weights of the relations to held-out labels",
    "explain": "draws what the relations have learnt, and why a pixel has its label",
    "reproduce": "makes the paper's tables, from training to report",
    "voc_submission": "makes the archive for VOC's server",
    "compare_objectives": "trains one model by several objectives",
    "merge_checkpoints": "joins potentials that were trained apart",
    "pydensecrf": "runs a script that imports pydensecrf",
    "env": "prints what was built and what is used",
}


def _run(argv: Sequence[str]) -> None:
    if argv and argv[0] not in ("-h", "--help"):
        name = argv[0] if argv[0] in COMMANDS else "COMMAND"
        raise InputError(f"got {argv[0]}, must be python -m deepcrf_ext.{name}, with a dot")
    print("usage: python -m deepcrf_ext.COMMAND ..., and --help for its options\n")
    for name, text in COMMANDS.items():
        print(f"  {name:<20}{text}")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints them; returns the exit code: 0, or 2 where something else is asked for."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
