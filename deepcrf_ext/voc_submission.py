"""`python -m deepcrf_ext.voc_submission`: the archive that PASCAL VOC's evaluation server takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_checkpoint_option,
    add_dense_crf_options,
    add_device_option,
    add_row_option,
    dense_crf_settings,
)
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import named_variant
from deepcrf_ext.paper.voc_archive import write_archive
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.whole_files import make_folder

COMPETITIONS = {
    "comp5": "trained on VOC's own annotation alone",
    "comp6": "trained on other data too: VGG-16's weights, SBD",
}

_DESCRIPTION = """Segment VOC 2012's images and pack the results for the evaluation server.

Writes one .tgz with results/VOC2012/Segmentation/COMPETITION_SPLIT_cls/NAME.png: class indices 0 to
20 at the size of each image, with VOC's palette, no pixel left undecided. The archive is written
whole or not at all."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.voc_submission", _DESCRIPTION)
    add_checkpoint_option(parser)
    parser.add_argument(
        "--data.root",
        "--root",
        type=Path,
        required=True,
        help="VOC2012, VOCdevkit, or the folder above.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results.tgz"), help="The archive to write."
    )
    parser.add_argument(
        "--data.split", "--split", default="test", help="Split to segment: test, val, ..."
    )
    competitions = "; ".join(f"{name}: {text}" for name, text in COMPETITIONS.items())
    parser.add_argument("--competition", default="comp6", help=f"Which one ({competitions}).")
    add_row_option(parser, "the last row that the checkpoint offers")
    add_dense_crf_options(parser)
    add_view_options(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace the archive if it exists."
    )
    add_device_option(parser)
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    output: Path = arguments.output
    if arguments.competition not in COMPETITIONS:
        raise InputError(
            f"competition: got {arguments.competition!r}, must be one of {', '.join(COMPETITIONS)}"
        )
    if output.is_dir():
        raise InputError(f"output: {output} is a folder; must be the name of a file, as x/a.tgz")
    if output.exists() and not arguments.overwrite:
        raise InputError(f"output: {output} exists; choose another file, or give --overwrite")
    model, config, metadata = load_model(arguments.checkpoint, choose_device(arguments.device))
    dataset = open_dataset("voc", arguments.data.root, arguments.data.split)
    if list(metadata["classes"]) != list(dataset.classes):
        raise InputError(
            f"checkpoint: {arguments.checkpoint} was trained for {len(metadata['classes'])} "
            f"classes ({', '.join(metadata['classes'])}), not for VOC's"
        )
    name = arguments.row or next(reversed(model.variants()), None)
    variant = named_variant(model, name)
    dense_crf = dense_crf_settings(arguments, variant.dense_crf, "--row full")
    make_folder(output.parent)
    folder = f"results/VOC2012/Segmentation/{arguments.competition}_{arguments.data.split}_cls"
    write_archive(
        model, variant, dataset, folder, output, views_of(arguments), config.amp, dense_crf
    )
    print(f"{len(dataset)} images by the row {model.name_of(variant)}: {output} with {folder}/")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
