"""Named settings: those of the papers, and narrow ones for CPUs."""

from __future__ import annotations

import copy
from typing import Any

from deepcrf_ext.config.data import DataConfig
from deepcrf_ext.config.model import ModelConfig, PresetName
from deepcrf_ext.config.train import OptimConfig, TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.nn.relations import RelationConfig

# For images of some hundred pixels a side. A network sees windows of 38 pixels at scale 0.9 and of
# 113 at scale 0.3, its nodes are 4.4 pixels apart; relations carry context from window to window.
_SMALL: dict[str, Any] = {
    "model.widths": (16, 32),
    "model.convs": (1, 1),
    "model.pooled_blocks": 2,
    "model.head_widths": (96,),
    "model.scales": (0.9, 0.6, 0.3),
    "model.head_per_scale": True,
    "model.hidden": 48,
    "model.pairwise_hidden": 96,
    "model.iterations": 3,
    "model.relation_weight": 0.01,
    "warm_start": 0.5,
    "batch_size": 4,
    "ema": 0.99,
    "validate_every": 3,
}
_PAPER: dict[str, Any] = {
    "model.widths": (64, 128, 256, 512, 512),
    "model.convs": (2, 2, 3, 3, 3),
    "model.pooled_blocks": 5,
    "model.head_widths": (4096, 512, 512),
    "model.batch_norm": False,
    "model.hidden": 512,
    "model.pairwise_hidden": 512,
    "optim.lr": 1e-3,
    "optim.lr_initialised": 1e-4,
    "optim.schedule": "exponential",
    "data.crop": (450, 600),
    "epochs": 60,
    "warm_start": 0.0,
    "batch_size": 2,
}
_FEATMAP: dict[str, Any] = {
    "model.share_blocks": True,
    "model.head_per_scale": True,
    "model.pooling_windows": (5, 9),
    "model.upsampling": "bilinear",
    "model.iterations": 3,
    "model.relations": {
        "surrounding": RelationConfig("surrounding", 0.4, 0.4),
        "above_below": RelationConfig("above_below", 0.4, 0.4),
    },
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optim.lr": 1e-3, "optim.lr_initialised": 1e-4, "optim.weight_decay": 0.01},
}
"""What the commands change from the preset for an optimiser, by dotted option name."""
PRESETS: dict[str, dict[str, Any]] = {
    "small": {"model.preset": "small", **_SMALL},
    "paper": {"model.preset": "paper", **_PAPER},
    "cvpr16": {
        **_PAPER,
        **_FEATMAP,
        "model.preset": "cvpr16",
        "model.pooled_blocks": 4,
        "data.scale_range": (0.7, 1.2),
    },
    "small-cvpr16": {"model.preset": "small-cvpr16", **_FEATMAP},
}
"""What each preset changes from the defaults of the dataclasses, by dotted option name."""


def preset(name: PresetName) -> TrainConfig:
    """All settings of a preset. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"preset: got {name!r}, must be one of {', '.join(PRESETS)}")
    values: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "optim": {}, "": {}}
    for option, value in copy.deepcopy(PRESETS[name]).items():
        group, _, key = option.rpartition(".")
        values[group][key] = value
    return TrainConfig(
        DataConfig(**values["data"]),
        ModelConfig(**values["model"]),
        OptimConfig(**values["optim"]),
        **values[""],
    )
