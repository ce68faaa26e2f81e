"""`python -m deepcrf_ext.data`: what a data set holds, before anything is trained on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.running import run_command
from deepcrf_ext.config.data import DataConfig
from deepcrf_ext.data.base import FileDataset, require_folder
from deepcrf_ext.data.overview import Overview, describe, list_splits, survey, values_as_classes
from deepcrf_ext.data.reduced import spread
from deepcrf_ext.errors import InputError
from deepcrf_ext.pictures.labels import colour, overlay, picture_grid
from deepcrf_ext.progress import Progress
from deepcrf_ext.settings_files import home_expanded
from deepcrf_ext.whole_files import make_folder

_DESCRIPTION = """Show what a data set holds, and check every file of it.

Prints for each split how many images there are, their sizes, how often each class occurs, what is
ignored or left out and every file that cannot be used, and writes a contact sheet of images with
their labels. The options are those of deepcrf_ext.train. The exit code is 0 where training would
take the data, and 2 where it would not."""


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.data", _DESCRIPTION)
    parser.add_argument("root", type=Path | None, nargs="?", help="Folder of the data set.")
    parser.add_class_arguments(DataConfig, "data", skip={"root"})
    parser.set_defaults({"data.dataset": "folder"})
    parser.add_argument(
        "--splits",
        nargs="+",
        type=str,
        help="Splits to look at. Default: those that are there.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("contact-sheet.png"),
        help="The contact sheet to write, replaced if there is one.",
    )
    parser.add_argument(
        "--pictures", type=NonNegativeInt, default=4, help="Images of a split on the contact sheet."
    )
    return parser


def write_contact_sheet(overviews: Sequence[Overview], path: Path, pictures: int) -> None:
    """Writes images of every split, spread evenly, with their labels beside and over them.

    Raises InputError where that would replace a file of the data set.
    """
    for overview in overviews:
        files = overview.dataset.files if isinstance(overview.dataset, FileDataset) else ()
        own = (p for file in files for p in (file.image, file.labels) if p is not None)
        if os.path.realpath(path) in map(os.path.realpath, own):
            raise InputError(f"output: {path} is a file of the data set; choose another name")
    rows = []
    for overview in overviews:
        dataset = overview.dataset
        for place in spread(len(overview.good), pictures):
            sample = dataset[overview.good[place]]
            image, labels = sample.image, sample.labels
            rows.append(
                [image, colour(labels, dataset.palette), overlay(image, labels, dataset.palette)]
            )
    if rows:
        make_folder(path.parent)
        first = overviews[0].dataset
        titles = ["image", "labels", "both"]
        picture_grid(rows, titles, path, first.classes, np.asarray(first.palette))
        print(f"contact sheet: {path}")


def _refuse_untrainable(overview: Overview, wanted: Mapping[str, str]) -> None:
    """Raises InputError for one class alone, and for a split of training, `wanted` by its kind,
    without a label."""
    classes = overview.dataset.classes
    if len(classes) < 2:
        raise InputError(
            f"data.classes: {classes[0]} is the only one; training takes at least two, such as "
            f"background and {classes[0]}"
        )
    for kind, split in wanted.items():
        if split == overview.split and not overview.pixels[: len(classes)].any():
            raise InputError(f"data.{kind}_split: no pixel of {split} has a label, all are ignored")


def _run(argv: Sequence[str]) -> None:
    arguments = parsing.parse(_parser(), argv)
    source: DataConfig = replace(arguments.data, root=arguments.root)
    if arguments.output.suffix.lower() != ".png" or arguments.output.is_dir():
        raise InputError(f"output: got {arguments.output}, must be the name of a .png file")
    if source.dataset == "folder" and source.root is None:
        raise InputError("root: not given; must be the folder of the data set")
    if source.root is not None:
        require_folder(home_expanded(source.root), "the folder of the data set", "root")
    splits = arguments.splits or list_splits(source)
    if not splits:
        splits = ["train"]  # whose absence is told with what is there instead
    untold = source.dataset == "folder" and source.classes is None and source.labels is None
    if untold:
        source = values_as_classes(source, splits)
    overviews: list[Overview] = []
    unopened: dict[str, str] = {}  # why, by split
    with Progress(None, "read", "file") as shown:
        for split in splits:
            try:
                overviews.append(survey(source, split, shown.update))
            except InputError as error:
                if arguments.splits or len(splits) == 1:
                    raise
                unopened[split] = str(error)
    for overview in overviews:
        print(describe(overview), end="\n\n")
    for split, reason in unopened.items():
        if overviews:
            print(f"not there: {split}: {reason}\n")
    write_contact_sheet(overviews, arguments.output, arguments.pictures)
    problems = sum(len(overview.problems) for overview in overviews)
    if problems:
        raise InputError(f"{source.root}: {problems} problem{'s' * (problems > 1)}, listed above")
    if not overviews:
        reasons = "; ".join(dict.fromkeys(unopened.values()))
        raise InputError(f"none of the splits {', '.join(splits)} can be opened: {reasons}")
    if untold:
        assert isinstance(source.labels, dict)
        named = ", ".join(f"{value}: NAME" for value in source.labels.values())
        raise InputError(
            f'data.classes: not given; give --data.labels "{{{named}}}", or --data.classes where '
            "the values are indices"
        )
    wanted = {"train": source.train_split, "val": source.val_split}
    for overview in overviews:
        _refuse_untrainable(overview, wanted)
    absent = {kind: split for kind, split in wanted.items() if split not in splits}
    if source.dataset == "folder" and absent and not arguments.splits and splits != ["all"]:
        options = " and ".join(f"--data.{kind}-split" for kind in absent)
        raise InputError(
            f"{source.root}: holds {', '.join(splits)}, not {' and '.join(absent.values())}; "
            f"{options} or --data.split-file tell what training takes instead"
        )
    if splits == ["all"] and not arguments.splits:
        option = "images" if source.split_file is None else "split_file"
        raise InputError(
            f"data.{option}: without {{split}}, training and validation would be the same images; "
            "lists of their names, --data.split-file 'lists/{split}.txt', tell them apart"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 where data cannot be trained on."""
    return run_command(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
