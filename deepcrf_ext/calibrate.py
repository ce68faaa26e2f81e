"""`python -m deepcrf_ext.calibrate`: weights of a trained model's relations, fitted by likelihood.

A node has tens to hundreds of edges, and each potential was trained as if alone: summed as they
are, their energies make marginals far too sure. The weights of the relations mend that, without any
further training:

    python -m deepcrf_ext.calibrate --checkpoint runs/camvid
    python -m deepcrf_ext.evaluate --checkpoint runs/camvid/calibrate-camvid-val
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import add_measuring_options, open_split, output_folder
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.cli.view_options import add_view_options, views_of
from deepcrf_ext.evaluation.calibration import fit_relation_weights
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.records.checkpoint import (
    find_trained,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from deepcrf_ext.records.provenance import provenance
from deepcrf_ext.whole_files import write_json

_DESCRIPTION = """Fit one weight for each relation of a trained model, which multiplies its energies
in every prediction, to the labels of held-out images, by the mean of -log probability (NLL) at the
nodes. Nothing else changes, and this NLL never gets worse. Writes calibration.json and last.pt, the
checkpoint with these weights, for evaluate, predict and all others; weights/ holds the same for
DeepCRF.from_pretrained."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.calibrate", _DESCRIPTION)
    add_measuring_options(parser, "fit to", "calibrate-DATASET-SPLIT")
    parser.add_argument(
        "--max-images",
        type=PositiveInt,
        default=200,
        help="Images to fit to, at most, spread over the split.",
    )
    add_view_options(parser)
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    views, device = views_of(arguments), choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    dataset = open_split(arguments, config, metadata)
    folder = output_folder(arguments, "calibrate")
    before = model.relation_weights
    result = fit_relation_weights(model, dataset, config.amp, arguments.max_images, views)
    after = model.relation_weights
    images = min(arguments.max_images, len(dataset))
    report = {
        **provenance("calibrate", argv, arguments, config, metadata, device, images),
        "views": vars(views),
        "nll": {"before": result.before, "after": result.after},
        "weights": {"before": before, "after": after},
    }
    write_json(folder / "calibration.json", report)
    state = load_checkpoint(find_trained(arguments.checkpoint))
    save_checkpoint(folder / "last.pt", {**state, "model": model.cpu().state_dict()})
    model.save_pretrained(folder / "weights")
    for name, weight in after.items():
        print(f"{name}: weight {before[name]:.4g} -> {weight:.4g}")
    print(f"NLL at the nodes of {images} images: {result.before:.3f} -> {result.after:.3f}")
    print(f"Checkpoint: {folder / 'last.pt'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
