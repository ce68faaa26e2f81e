"""`python -m deepcrf_ext.predict`: segments images with a trained model.

Every image gives a label PNG with a palette, a colour overlay and, on request, its marginals. From
Python, `deepcrf_ext.evaluation.prediction.predict_image` does it; it can be imported from here too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from tqdm import tqdm

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_checkpoint_option,
    add_dense_crf_options,
    add_device_option,
    add_row_option,
    dense_crf_settings,
)
from deepcrf_ext.cli.running import EXIT_INPUT, run_command
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.data import read_image, write_labels
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.predicted_folder import PredictedFolder, find_images
from deepcrf_ext.evaluation.prediction import named_variant, predict_image, side_in_memory
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine_tiles import MEMORY
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.pictures.labels import legend, overlay, write_picture
from deepcrf_ext.progress import progress
from deepcrf_ext.records.checkpoint import checkpoint_digest, load_model
from deepcrf_ext.whole_files import write_whole

_DESCRIPTION = """Segment images with a trained model.

Writes below the output folder: labels/NAME.png (class indices with a palette), overlays/NAME.png
(the image tinted with its labels), legend.png (the colours of the classes) and, with --marginals,
marginals/NAME.npz. NAME is the name of the image without its suffix, or with it where two images
would share a name; it stays when a later run finds more images. Every file is written whole or not
at all, and predict.json notes what it is of: the same command goes on where it was stopped, does
images that are new or have changed since, and passes over the others; --overwrite does all again.

A folder stands for the images in it, results of earlier runs apart; where it holds none, for those
in its sub-folders, whose results go to sub-folders of the same names. An image that cannot be read
is reported and left out; the exit code is then 1, or 2 if none could be read."""


def _legend(
    path: Path,
    classes: Sequence[str],
    palette: npt.NDArray[np.uint8],
    overwrite: bool,
    images: Iterable[Path],
) -> npt.NDArray[np.uint8]:
    """The picture of the classes' colours that is to be written to a path.

    Raises InputError where that is an image, or a legend of others.
    """
    if os.path.realpath(path) in map(os.path.realpath, images):
        raise InputError(f"--output: {path} is an input; choose another folder")
    picture = legend(classes, palette)
    if not overwrite and path.exists() and not _is_picture(path, picture):
        raise InputError(
            f"--output: {path} is of other classes, or no legend; choose another folder, or give "
            "--overwrite to replace it"
        )
    return picture


def _is_picture(path: Path, picture: npt.NDArray[np.uint8]) -> bool:
    """Whether a file is this picture."""
    try:
        return np.array_equal(read_image(path), picture)
    except InputError:
        return False


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.predict", _DESCRIPTION)
    parser.add_argument("inputs", nargs="+", type=Path, help="Images, and folders of images.")
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="Folder for the results.")
    add_row_option(parser)
    parser.add_argument(
        "--dense-crf",
        action="store_true",
        help="Refine the outlines by a dense CRF over the pixels of the image at full size. Takes "
        "some 120 bytes a pixel and 16 bytes a pixel and class, or runs in tiles that overlap (see "
        "--memory). Part of the row full.",
    )
    parser.add_argument(
        "--memory",
        type=PositiveFloat,
        default=MEMORY / 1e9,
        help="Gigabytes to use, about, beside the networks, the image and its results (some 10 "
        "bytes a pixel). What is done at the full size of an image is done in parts where it takes "
        "more, and the networks see the image smaller where its graphs take more.",
    )
    add_dense_crf_options(parser)
    parser.add_argument(
        "--marginals",
        action="store_true",
        help="Also write marginals/NAME.npz: marginals (float32 [K, h, w] on the grid of nodes, "
        "before they are upsampled and refined), classes (K names) and size (height and width of "
        "the image).",
    )
    add_view_options(parser, photographs=True)
    parser.add_argument(
        "--alpha",
        type=ClosedUnitInterval,
        default=0.55,
        help="Strength of the colours in the overlays: 0 shows only the image, 1 only the colours.",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Do again what is finished, and replace results of other settings; never an input.",
    )
    add_device_option(parser)
    return parser


def _views_in_memory(
    model: DeepCRF,
    variant: Variant,
    views: Views,
    path: Path,
    size: tuple[int, int],
    gigabytes: float,
) -> Views:
    """The views of an image of this (height, width), smaller, which is told, where its graphs would
    take more memory."""
    if views.max_size is None or views.window is not None:
        return views
    wanted = min(views.max_size, max(size))
    side = side_in_memory(
        model, variant, size, wanted, int(1e9 * gigabytes / max(views.scales) ** 4)
    )
    if side < wanted:
        tqdm.write(
            f"{path}: seen by the networks at {side} instead of {wanted} pixels a side, so that "
            f"its graphs fit in {gigabytes:g} GB (--memory)",
            file=sys.stderr,
        )
    return replace(views, max_size=side)


def _run(argv: Sequence[str]) -> int:
    arguments = parsing.parse(_parser(), argv)
    views = views_of(arguments)
    images = find_images(arguments.inputs)
    model, config, metadata = load_model(arguments.checkpoint, choose_device(arguments.device))
    variant = named_variant(model, arguments.row)
    variant = replace(variant, dense_crf=variant.dense_crf or arguments.dense_crf)
    dense_crf = dense_crf_settings(arguments, variant.dense_crf, "--dense-crf or --row full")
    settings = {
        "checkpoint": checkpoint_digest(arguments.checkpoint),
        "row": model.name_of(variant),
        "dense_crf": dense_crf.as_dict() if variant.dense_crf else None,
        **asdict(views),
        "alpha": arguments.alpha,
    }
    output: Path = arguments.output
    classes, palette = metadata["classes"], np.array(metadata["palette"], np.uint8)
    colours = _legend(output / "legend.png", classes, palette, arguments.overwrite, images)
    folder = PredictedFolder(output, arguments.marginals)
    todo = folder.begin(images, settings, arguments.overwrite)
    write_picture(output / "legend.png", colours)
    memory = int(1e9 * arguments.memory)
    failed = 0
    quiet = len(images) == 1
    for path, target in progress(todo.items(), len(todo), "predict", "image", quiet):
        try:
            image = read_image(path)
        except InputError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        seen = _views_in_memory(model, variant, views, path, image.shape[:2], arguments.memory)
        try:
            prediction = predict_image(
                model, image, variant, None, config.amp, dense_crf, memory, seen
            )
        except InputError as error:  # too large, without --max-size and --window
            tqdm.write(f"error: {path}: {error}", file=sys.stderr)
            failed += 1
            continue
        target.marginals.unlink(missing_ok=True)  # which may be of an earlier image or settings
        with write_whole(target.labels) as file:
            write_labels(file, prediction.labels, palette)
        size = image.shape[:2]
        tinted = overlay(image, prediction.labels, palette, arguments.alpha)
        del image  # of a large one nothing is in memory for longer than it must
        write_picture(target.overlay, tinted)
        if arguments.marginals:
            with write_whole(target.marginals) as file:
                np.savez_compressed(
                    file,
                    marginals=prediction.marginals,
                    classes=np.array(classes),
                    size=np.array(size),
                )
    done, earlier = len(images) - failed, len(images) - len(todo)
    print(
        f"{done} of {len(images)} images segmented into {output}"
        + (f" ({earlier} of them earlier)" if earlier else "")
    )
    return 0 if not failed else 1 if failed < len(images) else EXIT_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 (some images left out) or 2 (bad input)."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
