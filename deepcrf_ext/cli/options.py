"""Options that several commands share, and what becomes of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.data import DATASETS, SegmentationDataset, open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.ops.dense_crf_params import PRESETS


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Adds --checkpoint, which `deepcrf_ext.records.checkpoint.load_model` takes."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="Run folder of a training (its best.pt, else its last.pt), or a checkpoint file.",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Adds --device, which `deepcrf_ext.parallel.device.choose_device` takes."""
    parser.add_argument(
        "--device", default="auto", help='"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".'
    )


def add_measuring_options(parser: ArgumentParser, verb: str, folder: str) -> None:
    """Adds --checkpoint, --data.*, --output and --device.

    verb: what is done with the split. folder: what --output is by default, for its help.
    """
    add_checkpoint_option(parser)
    splits = "; ".join(f"{name}: {', '.join(names)}" for name, names in DATASETS.items())
    parser.add_argument("--data.split", default="val", help=f"Split to {verb} ({splits}).")
    parser.add_argument(
        "--data.dataset",
        type=str | None,
        help=f"Data set, one of {', '.join(DATASETS)}. Default: the one of the training.",
    )
    parser.add_argument(
        "--data.root",
        type=Path | None,
        help="Folder of the data. Default: the one of the training.",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="Folder for the results, replaced if there are any. "
        f"Default: {folder} beside the checkpoint.",
    )
    add_device_option(parser)


def open_split(
    arguments: Namespace, config: TrainConfig, metadata: Mapping[str, Any]
) -> SegmentationDataset:
    """The split that the options name; what they leave out is filled in from the training.

    Raises InputError when its classes are not those of the checkpoint.
    """
    chosen = arguments.data
    name = chosen.dataset or config.data.dataset
    root = chosen.root or (config.data.root if name == config.data.dataset else None)
    dataset = open_dataset(name, root, chosen.split, config.seed)
    trained = list(metadata["classes"])
    if list(dataset.classes) != trained:
        raise InputError(
            f"data.dataset: {name} has {dataset.num_classes} classes "
            f"({', '.join(dataset.classes)}); the checkpoint was trained for {len(trained)} "
            f"({', '.join(trained)})"
        )
    arguments.data.dataset, arguments.data.root = name, root
    return dataset


def output_folder(arguments: Namespace, command: str) -> Path:
    """The folder for the results, made if need be; after `open_split`."""
    folder: Path | None = arguments.output
    if folder is None:
        run = arguments.checkpoint
        beside = run if run.is_dir() else run.parent
        folder = beside / f"{command}-{arguments.data.dataset}-{arguments.data.split}"
    folder.mkdir(parents=True, exist_ok=True)
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
