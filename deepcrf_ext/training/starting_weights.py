"""Where a training starts: VGG-16, a backbone's file, or a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.network_weights import Loaded, load_network_weights
from deepcrf_ext.models.pyramid_backbone import PyramidBackbone
from deepcrf_ext.models.transfer import Transfer, transfer_weights
from deepcrf_ext.models.vgg_init import initialise_from_vgg16
from deepcrf_ext.records.checkpoint import find_trained, load_checkpoint


@dataclass
class StartingWeights:
    """What a model was given.

    Attributes:
        taken: names of its parameters that are no longer random.
        transfer: how those of a trained model (`TrainConfig.init_from`) fitted.
        loaded: how those of a file (`TrainConfig.vgg_weights` or `backbone_weights`) did.
        relations_started: whether the networks of relations are among them.
    """

    taken: set[str] = field(default_factory=set)
    transfer: Transfer | None = None
    loaded: Loaded | None = None
    relations_started: bool = False


def take_weights(model: DeepCRF, config: TrainConfig, classes: Sequence[str]) -> StartingWeights:
    """Gives the model the weights that the settings name; later sources replace earlier ones'.

    Raises InputError where a file cannot be read or nothing of it fits.
    """
    start = StartingWeights()
    if config.vgg_weights is not None:
        start.loaded = initialise_from_vgg16(model, config.vgg_weights)
        start.taken |= set(start.loaded.taken)
    if config.backbone_weights is not None:
        for name, module in model.named_modules():
            if isinstance(module, PyramidBackbone):
                start.loaded = load_network_weights(
                    module.maps.network, Path(config.backbone_weights)
                )
                prefix = f"{name}.maps.network."
                start.taken |= {prefix + taken for taken in start.loaded.taken}
    if config.init_from is not None:
        _transfer(model, config, classes, start)
    start.taken &= {name for name, _ in model.named_parameters()}
    return start


def _transfer(
    model: DeepCRF, config: TrainConfig, classes: Sequence[str], start: StartingWeights
) -> None:
    path = find_trained(Path(str(config.init_from)))
    state = load_checkpoint(path)
    start.transfer = transfer_weights(model, classes, state["model"], state["classes"])
    weights = model.state_dict()
    if not any(weights[name].ndim > 1 for name in start.transfer.whole):
        raise InputError(f"init_from: no layer of {path} fits the model ({start.transfer})")
    start.taken |= set(start.transfer.whole)
    relations = [f"potentials.{name}.source.weight" for name in config.model.relations]
    start.relations_started = start.transfer.started(relations)
