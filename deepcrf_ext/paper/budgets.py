"""What a reproduction trains and measures: one recipe for each data set and budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from deepcrf_ext.config import PRESETS, TrainConfig, from_dict, to_dict
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings

BUDGETS: dict[str, str] = {
    "tiny": "a few minutes on two CPU cores: few and small images",
    "small": "about an hour on two CPU cores: all images, small networks",
    "paper": "the paper's networks, for a GPU",
}

_TINY: dict[str, Any] = {"train.save_minutes": 1.0, "eval_images": 40, "train.validate_every": 1}
_TINY_PHOTOS: dict[str, Any] = {
    **_TINY,
    "train.model.preset": "small-cvpr16",
    "train_images": 240,
    "max_side": 240,
    "train.data.crop": (192, 192),
    "train.epochs": 4,
    "train.batch_size": 4,
    "train.warm_start": 0.75,
}
_SMALL_PHOTOS: dict[str, Any] = {
    "train.model.preset": "small-cvpr16",
    "train.model.pooled_blocks": 4,
    "train.data.crop": (320, 320),
    "train.warm_start": 0.75,
    "train.validate_every": 3,
}
_RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("tiny", "scenes"): {**_TINY, "train.epochs": 8, "train.validate_every": 4},
    ("tiny", "camvid"): {
        **_TINY,
        "train.model.preset": "small-cvpr16",
        "train_images": 184,
        "max_side": 240,
        "train.data.crop": (180, 240),
        "train.epochs": 4,
        "train.batch_size": 4,
        "train.warm_start": 0.75,
    },
    ("tiny", "voc"): _TINY_PHOTOS,
    ("tiny", "folder"): _TINY_PHOTOS,
    ("small", "scenes"): {},
    ("small", "camvid"): {
        "train.model.preset": "small-cvpr16",
        "train.model.pooled_blocks": 4,
        "train.data.crop": (360, 480),
        "train.optim.lr": 0.01,
        "train.class_balance": "median_frequency",
        "train.epochs": 18,
        "train.batch_size": 4,
        "train.warm_start": 0.83,
        "train.validate_every": 6,
    },
    ("small", "voc"): _SMALL_PHOTOS,
    ("small", "folder"): _SMALL_PHOTOS,
    # From random weights: batch norm, and the relations start from the unary.
    ("paper", "scenes"): {
        "train.model.batch_norm": True,
        "train.model.pooled_blocks": 3,
        "train.model.pairwise_hidden": 1024,
        "train.data.crop": (96, 128),
        "train.optim.lr": 0.02,
        "train.optim.schedule": "poly",
        "train.warm_start": 0.6,
        "train.batch_size": 8,
        "train.validate_every": 5,
    },
    ("paper", "camvid"): {
        "train.model.batch_norm": True,
        "train.model.pooled_blocks": 4,
        "train.model.pairwise_hidden": 1024,
        "train.data.crop": (360, 480),
        "train.optim.lr": 0.02,
        "train.optim.schedule": "poly",
        "train.warm_start": 0.6,
        "train.batch_size": 4,
        "train.validate_every": 5,
    },
    ("paper", "voc"): {"train.data.train_split": "train_aug", "train.vgg_weights": "download"},
    ("paper", "folder"): {"train.vgg_weights": "download"},
}


def recipe(data: str, budget: str) -> dict[str, Any]:
    """What a budget changes from the defaults, by dotted option name of the command.

    A registered data set has the recipes of a folder.
    """
    changes = _RECIPES.get((budget, data), _RECIPES[budget, "folder"])
    preset = changes.get("train.model.preset", "paper" if budget == "paper" else "small")
    return {
        **{f"train.{name}": value for name, value in PRESETS[preset].items()},
        **changes,
    }


@dataclass(frozen=True)
class Plan:
    """Everything that the figures of a reproduction depend on.

    Args:
        train: The training run. Its potentials are independent, so one run serves every row: where
            its settings name none, all are trained.
        splits: Splits that are measured.
        examples: Pictures of each kind (largest gains, typical, largest losses).
        train_images: How many training images are used, spread evenly over the split; None: all.
        eval_images: The same for each measured split.
        max_side: Longest side in pixels that images are shrunk to, in training and measuring.
        dense_crf: Settings of the dense CRF of the row `full`.
    """

    train: TrainConfig
    splits: tuple[str, ...]
    examples: int
    train_images: int | None
    eval_images: int | None
    max_side: int | None
    dense_crf: DenseCRFSettings

    def __post_init__(self) -> None:
        if self.train.model.potentials is None:
            model = replace(self.train.model, potentials="all")
            object.__setattr__(self, "train", replace(self.train, model=model))

    def variants(self) -> dict[str, Variant]:
        """The variants that the trained model offers (`DeepCRF.variants`); not empty.

        Raises InputError if there is none.
        """
        with torch.device("meta"):  # the networks without their weights
            model = DeepCRF(self.train.model, 1)
        variants = model.variants()
        if not variants:
            raise InputError(
                f"train.model.potentials: {', '.join(model.potential_names)} make none of the rows "
                f"{', '.join(VARIANTS)}"
            )
        return variants

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return {
            **vars(self),
            "train": to_dict(self.train),
            "splits": list(self.splits),
            "dense_crf": self.dense_crf.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan back from `as_dict`. Raises InputError for what does not fit."""
        try:
            read = {
                "train": from_dict(values["train"]),
                "splits": tuple(values["splits"]),
                "dense_crf": DenseCRFSettings.read(values["dense_crf"]),
            }
            return cls(**{**values, **read})
        except KeyError as error:
            raise InputError(f"plan: lacks {error}") from error
        except TypeError as error:
            raise InputError(f"plan: {error}") from error

    def differences(self, other: Plan) -> list[str]:
        """The options whose value changes a figure and differs: "name: own value, then other's".

        Where data lie, the device and how often is saved do not count, nor do the splits, which are
        measured one by one.
        """
        own, others = (_flat(plan.as_dict()) for plan in (self, other))
        return [
            f"{name}: {own.get(name)}, then {others.get(name)}"
            for name in sorted(own.keys() | others.keys())
            if name not in _FREE and own.get(name) != others.get(name)
        ]


_FREE = {
    "splits",
    "train.output",
    "train.data.root",
    "train.data.workers",
    "train.device",
    "train.save_minutes",
}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{name}."))
        else:
            result[f"{prefix}{name}"] = value
    return result
