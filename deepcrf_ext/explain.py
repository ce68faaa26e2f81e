"""`python -m deepcrf_ext.explain`: what a CRF has learnt, and why it labelled a pixel as it did."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.help import HelpFormatter
from deepcrf_ext.cli.options import add_measuring_options, add_row_option, open_split, output_folder
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.cli.view_options import MAX_SIZE, add_view_options, views_of
from deepcrf_ext.config import RelationConfig
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.data import Sample, read_image, shrink
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import named_variant, upsample_labels
from deepcrf_ext.explanation.analysis import compatibility, explain_node
from deepcrf_ext.explanation.pictures import compatibility_picture, node_picture
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.parallel.device import autocast, choose_device
from deepcrf_ext.records.checkpoint import find_trained, load_model
from deepcrf_ext.records.provenance import made_by, provenance
from deepcrf_ext.whole_files import write_json

_DESCRIPTION = "What a trained deep CRF has learnt about its labels, and why it labels as it does."
_COMPATIBILITY = """Draw, for each relation, which labels it puts together ("what sits above what"),
averaged over all edges of a data set: the learnt energies of a pair beyond those of its two labels
(affinity), the pairs that the network expects and the pairs in the labels, both against chance.
Writes compatibility-RELATION.png and compatibility.json."""
_IMAGE = """Explain the label of one pixel: the log odds of its label in the end against that of the
unary alone (or the runner-up, where both are the same), and what each neighbour of each relation
added to them in the last mean-field update; this is exact. Writes a picture and a JSON file. The
image is a file, or --index of a split of the data set, whose true label is then known."""

ENDS = {
    "surrounding": ("the node is", "a neighbour is"),
    "above_below": ("above is", "below is"),
    "left_right": ("left is", "right is"),
    "offsets": ("the first node is", "the second is"),
}
"""How the rows and columns of a relation's table are read, by its kind."""


def _relations(model: DeepCRF) -> dict[str, RelationConfig]:
    """The relations that a model has networks for; raises InputError where there is none."""
    names = model.default_variant().relations
    if not names:
        raise InputError("--checkpoint: the model has no pairwise potentials to explain")
    return {name: model.config.relations[name] for name in names}


def _run_compatibility(arguments: Namespace, argv: Sequence[str]) -> None:
    device = choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    relations = _relations(model)
    dataset = open_split(arguments, config, metadata)
    folder = output_folder(arguments, "compatibility")
    views = views_of(arguments)
    tables = compatibility(model, dataset, tuple(relations), config.amp, views)
    record: dict[str, Any] = {}
    for name, table in tables.items():
        ends = ENDS[relations[name].kind]
        path = folder / f"compatibility-{name}.png"
        title = f"{name}, {len(dataset)} images of {arguments.data.dataset} "
        compatibility_picture(table, title + arguments.data.split, ends, dataset.classes, path)
        record[name] = {
            "rows": ends[0],
            "columns": ends[1],
            "mean_energies": table.energies.tolist(),
            "affinity": table.affinity.tolist(),
            "pairs_expected": table.learnt.tolist(),
            "pairs_labelled": table.labelled.tolist(),
        }
        affinity = table.affinity
        ranked = [divmod(k, len(affinity)) for k in affinity.flatten().argsort().tolist()]
        print(f"{name}: {ends[0]} ... and {ends[1]} ... (affinity, nats)")
        for title, pairs, sign in (("together", ranked[::-1], 1), ("apart", ranked, -1)):
            shown = [
                f"{dataset.classes[i]}/{dataset.classes[j]} {affinity[i, j]:+.1f}"
                for i, j in pairs[:5]
                if sign * affinity[i, j] > 0
            ]
            print(f"  {title}: {', '.join(shown)}")
    report = {
        **provenance("explain", argv, arguments, config, metadata, device, len(dataset)),
        "views": vars(views),
        "classes": list(dataset.classes),
        "relations": record,
    }
    write_json(folder / "compatibility.json", report)
    print(f"Results: {folder}")


def _sample(
    arguments: Namespace, config: Any, metadata: Mapping[str, Any]
) -> tuple[Sample, np.ndarray | None]:
    """The image to explain, and its true labels where they are known."""
    if (arguments.image is None) == (arguments.index is None):
        raise InputError("image: give either an image file or --index, an image of --data.split")
    if arguments.image is not None:
        image = read_image(arguments.image)
        return Sample(image, np.zeros(image.shape[:2], np.uint8), arguments.image.stem), None
    dataset = open_split(arguments, config, metadata, labelled=False)
    if not 0 <= arguments.index < len(dataset):
        raise InputError(f"--index: got {arguments.index}, must be 0 to {len(dataset) - 1}")
    sample = dataset[arguments.index]
    return sample, sample.labels


def _pixel(text: str, image: np.ndarray) -> tuple[int, int]:
    """The pixel x,y of --at; raises InputError where it is none of the image."""
    height, width = image.shape[:2]
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at: got {text!r}, must be two whole numbers, as 40,60") from None
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f"--at: got {text}, must be inside the image of {width} x {height} pixels")
    return x, y


def _run_image(arguments: Namespace, argv: Sequence[str]) -> None:
    device = choose_device(arguments.device)
    model, config, metadata = load_model(arguments.checkpoint, device)
    variant = named_variant(model, arguments.row)
    if variant.unary is None or not variant.relations or model.config.iterations < 1:
        raise InputError("--row: the row must have a unary, relations and mean-field iterations")
    sample, truth = _sample(arguments, config, metadata)
    image, classes = sample.image, metadata["classes"]
    x, y = _pixel(arguments.at, image)
    height, width = image.shape[:2]
    seen = torch.from_numpy(shrink(image, arguments.max_size)).to(device)
    pixels = seen.permute(2, 0, 1)[None].float()
    shown = (Variant(variant.unary), variant)
    with torch.inference_mode():
        with autocast(device, config.amp):
            energies = model.energies(pixels, variant.potentials)
        before, after = (
            upsample_labels(model.marginals(energies, chosen)[0], (height, width)).cpu().numpy()
            for chosen in shown
        )
    _, rows, columns = energies.grid
    node = (int((y + 0.5) * rows / height), int((x + 0.5) * columns / width))
    explanation = explain_node(model, energies, variant, node)

    if arguments.output is None and arguments.image is not None:
        arguments.output = find_trained(arguments.checkpoint).parent / "explain"
    folder = output_folder(arguments, "explain")
    name = f"explain-{sample.name}-{x}-{y}"
    palette = np.array(metadata["palette"], np.uint8)
    path = folder / f"{name}.png"
    names = (model.name_of(shown[0]), model.name_of(shown[1]))
    node_picture(explanation, image, before, after, names, (x, y), classes, palette, path)
    record: dict[str, Any] = {
        **made_by("explain", argv, device),
        "checkpoint": str(arguments.checkpoint),
        "image": sample.name,
        "at": [x, y],
    }
    if truth is not None and truth[y, x] != IGNORE_INDEX:
        record["truth"] = classes[truth[y, x]]
    record |= explanation.as_dict(classes, (height, width))
    write_json(folder / f"{name}.json", record)
    odds = ", ".join(f"{key} {value:+.2f}" for key, value in record["log_odds"].items())
    true = f" (truth: {record['truth']})" if "truth" in record else ""
    print(f"{sample.name} at {x},{y}: {record['label']} against {record['against']}{true}: {odds}")
    for item in record["neighbours"][: arguments.top]:
        print(f"  {item['nats']:+.2f} {item['relation']}, around pixel {item['pixel']}")
    print(f"Results: {folder / name}.png, {folder / name}.json")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m deepcrf_ext.explain",
        description=_DESCRIPTION,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subcommands(dest="command")
    table = parsing.make_parser("python -m deepcrf_ext.explain compatibility", _COMPATIBILITY)
    add_measuring_options(table, "average over", "compatibility-DATASET-SPLIT")
    add_view_options(table)
    commands.add_subcommand("compatibility", table, help="which labels go together")
    image = parsing.make_parser("python -m deepcrf_ext.explain image", _IMAGE)
    image.add_argument("image", nargs="?", type=Path | None, help="Image file to explain.")
    image.add_argument("--index", type=int | None, help="Image of the split, from 0, instead.")
    image.add_argument("--at", type=str, required=True, help="The pixel: x,y from the top left.")
    add_row_option(image)
    image.add_argument(
        "--top", type=PositiveInt, default=5, help="Neighbours to print; the JSON file has all."
    )
    image.add_argument(
        "--max-size",
        type=PositiveInt,
        default=MAX_SIZE,
        help="Longest side, in pixels, that the networks see; the one view that is explained.",
    )
    add_measuring_options(
        image, "take --index from", "explain (of a file) or explain-DATASET-SPLIT"
    )
    commands.add_subcommand("image", image, help="why a pixel has its label")
    return parser


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    chosen = arguments[arguments.command]
    (_run_compatibility if arguments.command == "compatibility" else _run_image)(chosen, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for bad input."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
