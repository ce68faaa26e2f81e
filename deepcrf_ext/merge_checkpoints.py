"""`python -m deepcrf_ext.merge_checkpoints`: one model of potentials that were trained apart.

Potentials are independent (paper, section 5), so each can be trained by a run of its own, on its
own machine, without any traffic between them:

    python -m deepcrf_ext.train --warm-start 0 --model.potentials '[unary]' --output runs/u
    python -m deepcrf_ext.train --warm-start 0 --model.potentials '[surrounding]' --output runs/s
    python -m deepcrf_ext.merge_checkpoints runs/u runs/s --output runs/merged

The result is what training them together would have given, and can be trained further. With a warm
start, a relation needs the unary in its run; of a potential in several runs, the first counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.records.checkpoint import load_model, save_checkpoint
from deepcrf_ext.records.run_folder import create_run_folder, record_start
from deepcrf_ext.training.merging import merge

_DESCRIPTION = """Merges runs that trained different potentials of one model into one run folder.

The runs must agree in data classes, in the model apart from model.potentials, and in the number of
steps. A potential that several of them have is taken from the first. The new folder holds last.pt,
for evaluate, predict and train --resume, and weights/, for DeepCRF.from_pretrained."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.merge_checkpoints", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, or checkpoint files.")
    parser.add_argument("--output", type=Path, required=True, help="Run folder to create.")
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    config, state = merge(arguments.runs)
    folder = create_run_folder(replace(config, output=arguments.output))
    save_checkpoint(folder / "last.pt", state)
    record_start(folder, state["step"], merged=[str(run) for run in arguments.runs])
    load_model(folder)[0].save_pretrained(folder / "weights")
    print(f"{', '.join(config.model.potentials or ())}: {folder / 'last.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
