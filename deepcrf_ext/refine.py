"""`python -m deepcrf_ext.refine`: sharpens the masks of any model by a dense CRF."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat, PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import (
    add_dense_crf_options,
    add_device_option,
    add_mask_options,
    dense_crf_settings,
    mask_settings,
)
from deepcrf_ext.cli.running import EXIT_INPUT, run_command
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.evaluation.mask_classes import count_classes
from deepcrf_ext.evaluation.mask_files import pair_masks
from deepcrf_ext.evaluation.masks import Masked
from deepcrf_ext.evaluation.refinement import Outcome, RefinedFolder, Refinement
from deepcrf_ext.models.refine_tiles import MEMORY
from deepcrf_ext.ops.dense_crf_params import Normalisation
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.pictures.labels import overlay
from deepcrf_ext.progress import progress

_DESCRIPTION = """Sharpen the masks of any model by a dense CRF over their images.

MASKS holds, for every image, a label map (a picture of class indices, grey or with a palette, or of
colours, each a class; or a .npy or .npz of integers [h, w]), an array of probabilities (.npy, .npz:
[K, h, w] or [h, w, K], upsampled where smaller than the image) or a grey-level saliency mask
(--kind saliency). Masks and images belong together by name, sub-folders
included; --mask-pattern '{name}_mask.png' says how masks are called. Two files do as well.

Writes labels/NAME.png below the output folder, in the coding of the mask (indices of few classes
look black in most programs), with --overlays overlays/NAME.png to look at, and with --probabilities
probabilities/NAME.npz (float16 [K, H, W]; of saliency grey levels, NAME.png). Every file is written
whole or not at all, and refine.json notes what it is of, so that a run that was stopped goes on
where it was, and masks and images that have changed since are done again. Files that cannot be used
are listed and left out; the exit code is then 1, or 2 if none could be used."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.refine", _DESCRIPTION)
    parser.add_argument("images", type=Path, help="Folder of images, or one image.")
    parser.add_argument("masks", type=Path, help="Folder of their masks, or the mask of the one.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the results.")
    add_mask_options(parser)
    parser.add_argument(
        "--truth",
        type=Path | None,
        help="Folder of true label maps, 255 where they are not known: the mean IoU of masks and "
        "refined labels is printed.",
    )
    add_dense_crf_options(parser)
    parser.add_argument(
        "--normalisation",
        type=Normalisation | None,
        help="How the kernels are divided by their row sums: symmetric, before, after or none. "
        "Default: that of the parameters, symmetric unless their file says else.",
    )
    parser.add_argument(
        "--overlays",
        action="store_true",
        help="Also write pictures: the image tinted with its mask and, on the right, with the "
        "refined labels.",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="Also write the refined probabilities."
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Do again what is finished; otherwise it is passed over.",
    )
    parser.add_argument(
        "--batch-size",
        type=PositiveInt | None,
        help="Images of one size that run together. Default: 8 on a GPU, 1 on the CPU.",
    )
    parser.add_argument(
        "--workers", type=PositiveInt, default=2, help="Threads that read and write files."
    )
    parser.add_argument(
        "--memory",
        type=PositiveFloat,
        default=MEMORY / 1e9,
        help="Gigabytes for an image, beside itself and its results: a larger one is refined in "
        "tiles that overlap. An image takes some 120 bytes a pixel and 16 bytes a pixel and class.",
    )
    add_device_option(parser)
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = parsing.parse(_parser(), argv)
    device = choose_device(arguments.device)
    crf = dense_crf_settings(arguments, True, "")
    if arguments.normalisation is not None:
        crf = replace(crf, params=replace(crf.params, normalisation=arguments.normalisation))
    pictures = _before_and_after if arguments.overlays else None
    output = RefinedFolder(arguments.output, arguments.probabilities, pictures)
    pairs, problems = pair_masks(
        arguments.images,
        arguments.masks,
        arguments.truth,
        (arguments.image_pattern, arguments.mask_pattern, arguments.truth_pattern),
    )
    for problem in problems:
        _report(problem)
    masks = count_classes(pairs, mask_settings(arguments), arguments.workers)
    files = output.begin(pairs, masks, crf, arguments.overwrite)
    todo = {file.name for file in files}

    def watch(results: Iterable[str | None]) -> Iterator[str | None]:
        for problem in progress(results, len(files), "refine", "image"):
            if problem is not None:
                _report(problem)
            yield problem

    refinement = Refinement(
        masks,
        crf,
        output,
        device,
        arguments.batch_size or (8 if device.type == "cuda" else 1),
        arguments.workers,
        int(1e9 * arguments.memory),
    )
    outcome = refinement.run(files, [file for file in pairs if file.name not in todo], watch)
    print(_summary(outcome, len(pairs) - len(files), len(problems), arguments.output))
    failed = len(problems) + len(outcome.problems)
    if not failed:
        return 0
    return 1 if outcome.refined or len(pairs) > len(files) else EXIT_INPUT


def _before_and_after(masked: Masked, labels: np.ndarray) -> np.ndarray:
    """The image tinted with its mask, and beside it with the refined labels: uint8 [H, 2 W, 3]."""
    image = masked.image.permute(1, 2, 0).contiguous().numpy()
    before = masked.labels.numpy().copy()
    before[before == masked.num_classes] = IGNORE_INDEX  # where the mask is unsure
    palette = masked.coding.visible_palette()
    return np.hstack([overlay(image, of, palette) for of in (before, labels)])


def _report(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr)


def _summary(outcome: Outcome, finished: int, unpaired: int, folder: Path) -> str:
    failed = unpaired + len(outcome.problems)
    total = outcome.refined + finished + failed
    text = f"{outcome.refined + finished} of {total} masks refined into {folder}"
    if finished:
        text += f" ({finished} of them earlier)"
    if outcome.scored and math.isnan(outcome.before):
        text += f"\nno pixel of the truth has a label, all are {IGNORE_INDEX}"
    elif outcome.scored:
        before, after = 100 * outcome.before, 100 * outcome.after
        text += f"\nmean IoU of {outcome.scored} images: {before:.2f} % before, {after:.2f} % after"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 (some masks left out) or 2 (bad input)."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
