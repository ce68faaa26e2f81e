"""`python -m deepcrf_ext.voc_submission`: the archive that PASCAL VOC's evaluation server takes."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_checkpoint_option,
    add_dense_crf_options,
    add_device_option,
    dense_crf_settings,
)
from deepcrf_ext.data import SegmentationDataset, open_dataset, write_labels
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.predict import named_variant, predict_image
from deepcrf_ext.records.checkpoint import load_model

COMPETITIONS = {
    "comp5": "trained on VOC's own annotation alone",
    "comp6": "trained on other data too: VGG-16's weights, SBD",
}

_DESCRIPTION = """Segment VOC 2012's images and pack the results for the evaluation server.

Writes one .tgz with results/VOC2012/Segmentation/COMPETITION_SPLIT_cls/NAME.png: class indices 0 to
20 at the size of each image, with VOC's palette, no pixel left undecided. The archive is written
whole or not at all."""


def write_archive(
    model: DeepCRF,
    row: Variant,
    dataset: SegmentationDataset,
    folder: str,
    path: Path,
    max_size: int | None = None,
    amp: bool | None = None,
    dense_crf: DenseCRFSettings | None = None,
) -> None:
    """Segments every image of a data set into a .tgz of palette PNGs.

    Args:
        model: in eval mode, on the device to use.
        row: the potentials to use.
        dataset: its images; labels are not looked at.
        folder: where the PNGs lie in the archive.
        path: the archive; an earlier file stays whole until the new one is complete.
        max_size, amp, dense_crf: as in `deepcrf_ext.predict.predict_image`.

    Raises:
        InputError: an image cannot be read.
        OSError: the archive cannot be written.
    """
    palette = voc_palette(256)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        picture, archive = Path(temporary) / "labels.png", Path(temporary) / "archive"
        with tarfile.open(archive, "w:gz") as tar:
            for index in tqdm(range(len(dataset)), "segment", unit="image"):
                sample = dataset[index]
                labels = predict_image(model, sample.image, row, max_size, amp, dense_crf).labels
                write_labels(picture, labels, palette)
                tar.add(picture, f"{folder}/{sample.name}.png")
        os.replace(archive, path)


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.voc_submission", _DESCRIPTION)
    add_checkpoint_option(parser)
    parser.add_argument(
        "--root", type=Path, required=True, help="VOC2012, VOCdevkit, or the folder above."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results.tgz"), help="The archive to write."
    )
    parser.add_argument("--split", default="test", help="Split to segment: test, val, ...")
    competitions = "; ".join(f"{name}: {text}" for name, text in COMPETITIONS.items())
    parser.add_argument("--competition", default="comp6", help=f"Which one ({competitions}).")
    parser.add_argument(
        "--row",
        type=str | None,
        help=f"Potentials to use, one of {', '.join(VARIANTS)}. Default: the last row that the "
        "checkpoint offers.",
    )
    add_dense_crf_options(parser)
    parser.add_argument(
        "--max-size",
        type=PositiveInt | None,
        help="Longest side, in pixels, that the networks see. Default: images as they are, at most "
        "500 in VOC.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace the archive if it exists."
    )
    add_device_option(parser)
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = parsing.parse(_parser(), argv)
    output: Path = arguments.output
    if arguments.competition not in COMPETITIONS:
        raise InputError(
            f"competition is {arguments.competition!r}; must be one of {', '.join(COMPETITIONS)}"
        )
    if output.exists() and not arguments.overwrite:
        raise InputError(f"output: {output} exists; choose another file, or give --overwrite")
    model, config, metadata = load_model(arguments.checkpoint, choose_device(arguments.device))
    dataset = open_dataset("voc", arguments.root, arguments.split)
    if list(metadata["classes"]) != list(dataset.classes):
        raise InputError(
            f"checkpoint: {arguments.checkpoint} was trained for {len(metadata['classes'])} "
            f"classes ({', '.join(metadata['classes'])}), not for VOC's"
        )
    rows = model.variants()
    if arguments.row is not None:
        name, row = arguments.row, named_variant(model, arguments.row)
    elif rows:
        name, row = list(rows.items())[-1]
    else:
        name, row = "all potentials", model.default_variant()
    dense_crf = dense_crf_settings(arguments, row.dense_crf, "--row full")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = f"results/VOC2012/Segmentation/{arguments.competition}_{arguments.split}_cls"
    write_archive(model, row, dataset, folder, output, arguments.max_size, config.amp, dense_crf)
    print(f"{len(dataset)} images by the row {name}: {output} with {folder}/")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return parsing.run_command(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
