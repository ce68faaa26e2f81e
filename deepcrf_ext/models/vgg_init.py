"""Initialisation from VGG-16 weights in torchvision's format (paper, section 5)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcrf_ext.errors import InputError
from deepcrf_ext.models.deep_crf import DeepCRF
from deepcrf_ext.models.vgg import Block6, VGGBlocks

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
CONV_KEYS = tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
FC6_KEY = "classifier.0"


def load_vgg16(source: str) -> dict[str, Tensor]:
    """A VGG-16 state dict from a local file, or torchvision's own for source "download".

    Raises InputError when the file is missing, truncated or holds something else.
    """
    try:
        if source == "download":
            state = torch.hub.load_state_dict_from_url(
                VGG16_URL, map_location="cpu", check_hash=True, weights_only=True
            )
        else:
            if not Path(source).is_file():
                raise InputError(f"vgg_weights: {source} is not a file")
            state = torch.load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"vgg_weights: cannot read {source}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"vgg_weights: {source} must hold a state dict of tensors")
    return state


def vgg_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """The convolutions of a model that VGG-16 has weights for, each with its key there.

    These are blocks 1-5 and the first convolution of block 6 (fc6), as often as the model has them.
    Raises InputError when its blocks are not VGG-16's.
    """
    layers: list[tuple[str, nn.Conv2d]] = []
    for module in model.modules():
        if isinstance(module, Block6) and len(module):
            layers.append((FC6_KEY, module.fc6()))
        elif isinstance(module, VGGBlocks):
            convs = module.convs()
            if len(convs) != len(CONV_KEYS) or any(conv.bias is None for conv in convs):
                raise InputError(
                    "vgg_weights: the model must have VGG-16's 13 convolutions in blocks 1-5 "
                    f"and no batch norm, it has {len(convs)} (preset 'paper' fits)"
                )
            layers += zip(CONV_KEYS, convs, strict=True)
    return layers


def initialise_from_vgg16(model: DeepCRF, source: str) -> set[str]:
    """Copies the weights in `source` (`load_vgg16`) to every place of a model that has room.

    Blocks 1-5 take the convolutions and block 6, as a 7x7 convolution, fc6. Returns the names of
    the parameters that took weights. Raises InputError
    naming `source` and the key that is missing or of another shape.
    """
    state = load_vgg16(source)
    for key, conv in vgg_layers(model):
        assert conv.bias is not None
        for suffix, parameter in (("weight", conv.weight), ("bias", conv.bias)):
            name = f"{key}.{suffix}"
            if name not in state:
                raise InputError(f"vgg_weights: {source} has no {name!r}")
            value = state[name]
            shape = tuple(parameter.shape)
            stored = (shape[0], parameter[0].numel()) if name == f"{FC6_KEY}.weight" else shape
            if tuple(value.shape) != stored:
                raise InputError(
                    f"vgg_weights: {source}: {name!r} has shape {tuple(value.shape)}, "
                    f"the model needs {stored}"
                )
            with torch.no_grad():
                parameter.copy_(value.reshape(shape))
    taken = {id(parameter) for _, conv in vgg_layers(model) for parameter in conv.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in taken}
