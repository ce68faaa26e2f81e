"""Options that several commands share, and what becomes of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from deepcrf_ext.config import DataSource, TrainConfig
from deepcrf_ext.data import DATASETS, SegmentationDataset, open_dataset, refuse_bad_files
from deepcrf_ext.data.base import labels_in
from deepcrf_ext.data.label_maps import read_labels_setting
from deepcrf_ext.data.predictions import Layout
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.masks import CERTAINTY, Kind, MaskSettings, about_labels
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.ops.dense_crf_params import PRESETS
from deepcrf_ext.settings_files import home_expanded
from deepcrf_ext.whole_files import make_folder

_SOURCE_OPTIONS = {
    "root": "Folder of the data.",
    "images": "Pattern of the paths of images, such as images/{split}/**, for folder.",
    "masks": "Pattern of the paths of masks, such as masks/{split}/{name}_L.png, for folder.",
    "split_file": "File of the images of a split, such as lists/{split}.txt, for folder and voc.",
    "labels": "The class of each value or colour in the masks, {0: background, 255: crack}, or a "
    "file, for folder.",
    "palette_masks": "Whether masks with a palette mean its indices or its colours, for folder.",
}
"""What can be told of a data set beside its name; its classes are those of the checkpoint."""


def add_checkpoint_option(parser: ArgumentParser, required: bool = True) -> None:
    """Adds --checkpoint, which `deepcrf_ext.records.checkpoint.load_model` takes."""
    parser.add_argument(
        "--checkpoint",
        type=Path if required else Path | None,
        required=required,
        help="Run folder of a training (its best.pt, else its last.pt), or a checkpoint file.",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Adds --device, which `deepcrf_ext.parallel.device.choose_device` takes."""
    parser.add_argument(
        "--device", default="auto", help='"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".'
    )


def add_row_option(parser: ArgumentParser, default: str = "every one of the checkpoint") -> None:
    """Adds --row, which `deepcrf_ext.evaluation.prediction.named_variant` takes.

    default: what is used without it, for its help.
    """
    parser.add_argument(
        "--row",
        type=str | None,
        help=f"Potentials to use, one of {', '.join(VARIANTS)}. Default: {default}.",
    )


def add_measuring_options(
    parser: ArgumentParser, verb: str, folder: str, checkpoint_required: bool = True
) -> None:
    """Adds --checkpoint, --data.*, --output and --device.

    verb: what is done with the split. folder: what --output is by default, for its help.
    """
    add_checkpoint_option(parser, checkpoint_required)
    splits = "; ".join(f"{name}: {', '.join(names)}" for name, names in DATASETS.items() if names)
    parser.add_argument(
        "--data.split",
        type=str | None,
        help=f"Split to {verb} ({splits}). Default: that of the training's validation, else val.",
    )
    parser.add_argument(
        "--data.dataset",
        type=str | None,
        help=f"Data set, one of {', '.join(DATASETS)}. Default: the one of the training.",
    )
    hints = get_type_hints(DataSource)
    for name, text in _SOURCE_OPTIONS.items():
        parser.add_argument(
            f"--data.{name}", type=hints[name] | None, help=f"{text} Default: as in training."
        )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="Folder for the results, replaced if there are any. "
        f"Default: {folder} beside the checkpoint.",
    )
    add_device_option(parser)


def require_trained_root(source: DataSource) -> None:
    """Raises InputError where the folder of a training's data is not there, from this folder."""
    root = source.root
    if root is not None and not home_expanded(root).exists():
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise InputError(
            f"data.root: {root}, where the training found its data, does not exist{where}; "
            "--data.root says where they are now"
        )


def open_split(
    arguments: Namespace,
    config: TrainConfig,
    metadata: Mapping[str, Any],
    *,
    labelled: bool = True,
) -> SegmentationDataset:
    """The split that the options name; what they leave out is filled in from the training.

    labelled: whether its labels are needed.

    Raises InputError when its classes are not those of the checkpoint, for files that cannot be
    used, all of them, and where labels are needed and all pixels are ignored.
    """
    chosen = arguments.data
    name = chosen.dataset or config.data.dataset
    trained = list(metadata["classes"])
    given = {key: chosen[key] for key in _SOURCE_OPTIONS if chosen[key] is not None}
    if name == config.data.dataset:
        chosen.split = chosen.split or config.data.val_split
        if chosen.root is None:
            require_trained_root(config.data)
        source: DataSource = replace(config.data, **given)
    else:
        chosen.split = chosen.split or "val"
        source = DataSource(name, classes=tuple(trained) if name == "folder" else None)
        source = replace(source, **given)
    dataset = open_dataset(source, split=chosen.split, seed=config.seed, strict=False)
    if list(dataset.classes) != trained:
        raise InputError(
            f"data.dataset: {name} has {dataset.num_classes} classes "
            f"({', '.join(dataset.classes)}); the checkpoint was trained for {len(trained)} "
            f"({', '.join(trained)})"
        )
    (reports,) = refuse_bad_files(dataset)
    if labelled and reports and labels_in(reports) <= {dataset.ignore_index}:
        raise InputError(f"data.split: no pixel of {chosen.split} has a label, all are ignored")
    arguments.data.dataset, arguments.data.root = name, source.root
    return dataset


def output_folder(arguments: Namespace, command: str) -> Path:
    """The folder for the results, made if need be; after `open_split`.

    Raises InputError where nothing can be written there, before there are results to lose.
    """
    folder: Path | None = arguments.output
    if folder is None:
        run = arguments.checkpoint
        beside = run if run.is_dir() else run.parent
        folder = beside / f"{command}-{arguments.data.dataset}-{arguments.data.split}"
    make_folder(folder)
    return folder


def add_dense_crf_options(parser: ArgumentParser) -> None:
    """Adds --dense-crf-params and --dense-crf-iterations to a command."""
    parser.add_argument(
        "--dense-crf-params",
        type=dict[str, Any] | str | None,
        metavar="PRESET|FILE|{...}",
        help=f"Parameters of the dense CRF: a preset ({', '.join(PRESETS)}), a file that "
        "deepcrf_ext.tune_dense_crf wrote, or some of them in braces, as "
        "'{bilateral_sxy: 40, bilateral_srgb: 5}'. They are gaussian_sxy and bilateral_sxy (widths "
        "in pixels), bilateral_srgb (width in units of RGB 0..255), gaussian_weight and "
        "bilateral_weight. Default: pydensecrf.",
    )
    parser.add_argument(
        "--dense-crf-iterations",
        type=NonNegativeInt | None,
        help="Mean-field iterations of the dense CRF. Default: those of the parameters' file, "
        f"else {DenseCRFSettings.iterations}.",
    )


def dense_crf_settings(arguments: Namespace, used: bool, needs: str) -> DenseCRFSettings:
    """The settings that the options give.

    used: whether the command runs a dense CRF; if not, the options raise InputError, saying that
    they go with `needs`.
    """
    source, iterations = arguments.dense_crf_params, arguments.dense_crf_iterations
    if not used:
        for option, value in (("params", source), ("iterations", iterations)):
            if value is not None:
                raise InputError(f"--dense-crf-{option} goes with {needs}")
    settings = DenseCRFSettings() if source is None else DenseCRFSettings.read(source)
    return settings if iterations is None else replace(settings, iterations=iterations)


def add_mask_options(parser: ArgumentParser) -> None:
    """Adds what says how masks of any model are called and read (see `evaluation.masks`)."""
    parser.add_argument(
        "--kind",
        type=Kind,
        default="auto",
        help="What masks hold. auto: labels in pictures and in arrays of one plane of integers, "
        "probabilities in other arrays.",
    )
    parser.add_argument(
        "--certainty",
        type=float | None,
        help="Of label maps, the probability that a label is right; of others, what the largest "
        "probability is mixed down to with uniform ones, 1 for as they are. Default: "
        + ", ".join(f"{value} for {kind}" for kind, value in CERTAINTY.items())
        + ".",
    )
    parser.add_argument(
        "--labels",
        type=Any,
        help="The class of each value, range of values or colour in label maps, "
        "{0: background, 255: crack}, or ignore where it could be anything; camvid-colours or "
        "voc-colours; or a YAML or JSON file. Default: they hold indices of classes, or colours of "
        "which each is a class. Results have the first value or colour of a class.",
    )
    parser.add_argument(
        "--unsure",
        type=int | Literal["auto"] | None,
        default=MaskSettings.unsure,
        help="Label of pixels that could be anything; null if there is none. auto: 255, or none in "
        "colours.",
    )
    parser.add_argument(
        "--classes",
        type=int | None,
        help="How many classes label maps have. Default: up to the highest label in all of them.",
    )
    parser.add_argument(
        "--layout",
        type=Layout,
        default="auto",
        help="Which axis of an array is that of the classes: the first (khw), the last (hwk), or "
        "the one over which probabilities sum to 1.",
    )
    for noun in ("image", "mask", "truth"):
        parser.add_argument(
            f"--{noun}-pattern",
            default="**",
            help=f"How files of {noun}s are called below their folder: {{name}} is the name that "
            "they share, * part of a file name, ** any folders; '{name}_mask.png' or '**/*.jpg'.",
        )


def mask_settings(arguments: Namespace) -> MaskSettings:
    """The settings that the options of `add_mask_options` give."""
    with about_labels():
        labels = read_labels_setting(arguments.labels, Path())
    return MaskSettings(
        arguments.kind,
        arguments.certainty,
        arguments.unsure,
        arguments.classes,
        arguments.layout,
        labels,
    )


def given_mask_options(arguments: Namespace) -> list[str]:
    """The options of `add_mask_options`, but of truths, that are not the defaults, as they are
    typed."""
    parser = ArgumentParser()
    add_mask_options(parser)
    given: list[str] = []
    for name, default in vars(parser.get_defaults()).items():
        value = arguments[name]
        if value != default and name != "truth_pattern":
            given += ["--" + name.replace("_", "-"), "null" if value is None else str(value)]
    return given
