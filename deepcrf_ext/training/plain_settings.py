"""The settings of a run as a checkpoint carries them, so that it needs no file but itself."""

from __future__ import annotations

from dataclasses import fields, replace

from deepcrf_ext.config import DataSource, TrainConfig
from deepcrf_ext.data import SegmentationDataset
from deepcrf_ext.data.reduced import whole
from deepcrf_ext.data.registry import BUILT_IN, IN_PYTHON
from deepcrf_ext.training.class_balance import plain_balance


def plain_settings(config: TrainConfig, dataset: SegmentationDataset) -> TrainConfig:
    """The settings with what they say of the data set, and of its classes, in plain values.

    Raises InputError where `TrainConfig.class_balance` does not fit the classes.
    """
    balance = plain_balance(config.class_balance, dataset.classes)
    config = replace(config, class_balance=balance)
    data = whole(dataset)
    if not isinstance(data, BUILT_IN.get(config.data.dataset, object)):
        return replace(config, data=replace(config.data, dataset=IN_PYTHON, root=None))
    if dataset.source is None:
        return config
    source = {field.name: getattr(dataset.source, field.name) for field in fields(DataSource)}
    return replace(config, data=replace(config.data, **source))
