"""Settings of a run, as plain dataclasses.

The commands turn them into options and config files; a checkpoint carries them as a dictionary
(`to_dict`, `from_dict`). The commands start from `preset("small")`; `preset("paper")` gives the
paper's settings and `preset("cvpr16")` those of its later form.
"""

from deepcrf_ext.config.data import DataConfig, DataSource
from deepcrf_ext.config.model import ModelConfig, PresetName
from deepcrf_ext.config.plain import from_dict, to_dict
from deepcrf_ext.config.presets import OPTIMISERS, PRESETS, preset
from deepcrf_ext.config.train import (
    ObjectiveName,
    OptimConfig,
    PhaseConfig,
    TrainConfig,
)
from deepcrf_ext.nn.relations import RelationConfig, paper_relations

__all__ = [
    "OPTIMISERS",
    "PRESETS",
    "DataConfig",
    "DataSource",
    "ModelConfig",
    "ObjectiveName",
    "OptimConfig",
    "PhaseConfig",
    "PresetName",
    "RelationConfig",
    "TrainConfig",
    "from_dict",
    "paper_relations",
    "preset",
    "to_dict",
]
