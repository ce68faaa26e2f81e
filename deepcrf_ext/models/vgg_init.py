"""Initialisation from VGG-16 weights: torchvision's, with batch normalisation or without, or its 13
convolutions alone (paper, section 5)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcrf_ext.errors import InputError
from deepcrf_ext.models.deep_crf import DeepCRF
from deepcrf_ext.models.network_weights import Loaded, read_state_dict
from deepcrf_ext.models.vgg import Block6, ScaleNorm, VGGBlocks

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
NUM_CONVS = 13
FC6_KEY = "classifier.0"
_EPS = 1e-5  # of torchvision's batch normalisation
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_BIAS_NAMES = (("weights", "biases"), ("weight", "bias"), ("kernel", "bias"), ("W", "b"))


@dataclass(frozen=True)
class VGGLayer:
    """A layer of a file. names: of its tensors there. norm: batch normalisation after it, [C] each:
    scale, shift, mean and variance; None without."""

    weight: Tensor
    bias: Tensor
    names: tuple[str, ...]
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the same."""
        if self.norm is None:
            return self.weight, self.bias
        scale, shift, mean, variance = self.norm
        factor = scale * (variance + _EPS).rsqrt()
        return self.weight * factor[:, None, None, None], (self.bias - mean) * factor + shift


@dataclass(frozen=True)
class _Place:
    """A convolution of a model with its normalisation; `number` is that in VGG-16, -1 of fc6."""

    number: int
    conv: nn.Conv2d
    norm: ScaleNorm | None


def load_vgg16(source: str) -> dict[str, Tensor]:
    """The tensors of a file, or of torchvision's VGG-16 for source "download".

    Raises InputError when the file is missing, damaged or holds something else.
    """
    try:
        if source != "download":
            return read_state_dict(Path(source))
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            VGG16_URL,
            map_location="cpu",
            progress=sys.stderr.isatty(),
            check_hash=True,
            weights_only=True,
        )
        return state
    except InputError as error:
        raise InputError(f"vgg_weights: {error}") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"vgg_weights: cannot download {VGG16_URL} ({reason}); give the path of a copy of it"
        ) from error


@torch.no_grad()
def initialise_from_vgg16(model: DeepCRF, source: str) -> Loaded:
    """Copies the weights in `source` to every place of a model that has room.

    Blocks 1-5 take the 13 convolutions; block 6, as a 7x7 convolution, takes fc6 where the file has
    it in its shape. The convolutions are the first 13 of 3x3 in the file, by whatever names, in the
    order of the numbers in these; kernels laid out [3, 3, in, out] are turned. Batch normalisation
    after them (torchvision's vgg16_bn) goes into that of the model, or into the convolutions of a
    model that has none.

    Args:
        model: with VGG-16's blocks.
        source: a state dict (.pth, .safetensors) or "download" (`load_vgg16`). It expects images
            in RGB, less ImageNet's mean, over its standard deviation, as torchvision's.

    Raises InputError naming `source` and what is missing or of another shape.
    """
    state = load_vgg16(source)
    places = list(_places(model))
    layers = _read_convs(state, source)
    fc6 = _read_fc6(state)
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    taken: list[Tensor] = []
    missing: list[Tensor] = []
    used: set[str] = set()
    for place in places:
        layer = fc6 if place.number < 0 else layers[place.number]
        shape = place.conv.weight.shape
        if place.number < 0 and (layer is None or layer.weight.numel() != shape.numel()):
            missing += _tensors(place)
            continue
        assert layer is not None
        if place.number >= 0 and layer.weight.shape != shape:
            raise InputError(
                f"vgg_weights: {source}: {layer.names[0]!r} has shape {tuple(layer.weight.shape)}, "
                f"the model needs {tuple(shape)} for convolution {place.number + 1} of {NUM_CONVS}"
            )
        filled = _fill(place, layer)
        taken += filled
        missing += [t for t in _tensors(place) if not any(t is other for other in filled)]
        used.update(layer.names if place.conv.bias is not None or layer.norm else layer.names[:1])
    left = tuple(name for name in state if name not in used)
    return Loaded(tuple(names[id(t)] for t in taken), tuple(names[id(t)] for t in missing), left)


def _places(model: nn.Module) -> Iterator[_Place]:
    """Where a model has a convolution of VGG-16. Raises InputError when its blocks are others."""
    for module in model.modules():
        if not isinstance(module, Block6 | VGGBlocks) or len(module) == 0:
            continue
        layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | ScaleNorm)]
        following = [*layers[1:], None]
        convs = [
            (layer, norm if isinstance(norm, ScaleNorm) else None)
            for layer, norm in zip(layers, following, strict=True)
            if isinstance(layer, nn.Conv2d)
        ]
        if isinstance(module, Block6):
            yield _Place(-1, *convs[0])
            continue
        if len(convs) != NUM_CONVS:
            raise InputError(
                f"vgg_weights: the model must have VGG-16's {NUM_CONVS} convolutions in blocks "
                f"1-5, it has {len(convs)} (preset 'paper' fits)"
            )
        for number, pair in enumerate(convs):
            yield _Place(number, *pair)


def _tensors(place: _Place) -> list[Tensor]:
    """Weights of a place that a file could fill."""
    return [*place.conv.parameters(), *(t for norm in _norms(place) for t in norm)]


def _norms(place: _Place) -> list[list[Tensor]]:
    """The tensors of each normalisation of a place, in the order of `_NORM_PARTS`."""
    if place.norm is None:
        return []
    states = [norm.state_dict(keep_vars=True) for norm in place.norm]
    return [[state[part] for part in _NORM_PARTS] for state in states]


def _fill(place: _Place, layer: VGGLayer) -> list[Tensor]:
    """Copies a layer of a file to its place; returns what took values."""
    conv = place.conv
    if conv.bias is not None:
        weight, bias = layer.folded()
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        conv.bias.copy_(bias)
        return [conv.weight, conv.bias]
    conv.weight.copy_(layer.weight.reshape(conv.weight.shape))
    if layer.norm is None:
        return [conv.weight]  # what the bias adds, normalisation takes away
    scale, shift, mean, variance = layer.norm
    for norm in _norms(place):
        for tensor, value in zip(norm, (scale, shift, mean - layer.bias, variance), strict=True):
            tensor.copy_(value)
    return _tensors(place)


def _natural(name: str) -> list[tuple[int, str]]:
    """By the numbers in a name as numbers, so that features.10 comes after features.2."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _read_convs(state: Mapping[str, Tensor], source: str) -> list[VGGLayer]:
    """The 13 convolutions of a file. Raises InputError where it does not hold them."""
    maps = {name: value.double() for name, value in state.items() if value.dim() == 4}
    first, last = (
        {name: value for name, value in maps.items() if value.shape[axes] == (3, 3)}
        for axes in (slice(0, 2), slice(2, 4))
    )
    if len(first) > len(last):
        kernels = {name: value.permute(3, 2, 0, 1) for name, value in first.items()}
    else:
        kernels = last
    if len(kernels) < NUM_CONVS:
        raise InputError(
            f"vgg_weights: {source} holds {len(kernels)} kernels of 3x3; must hold the {NUM_CONVS} "
            "convolutions of VGG-16"
        )
    in_order = sorted(kernels, key=_natural)[:NUM_CONVS]
    return [_read_conv(state, name, kernels[name], source) for name in in_order]


def _read_conv(state: Mapping[str, Tensor], name: str, weight: Tensor, source: str) -> VGGLayer:
    bias_names = [name.replace(old, new) for old, new in _BIAS_NAMES if old in name]
    bias_name = next((other for other in bias_names if other in state), None)
    norm_names = [other for other in _norm_names(name) if other in state]
    norm = None
    if len(norm_names) == 4:
        scale, shift, mean, variance = (state[other].double() for other in norm_names)
        norm = (scale, shift, mean, variance)
    if bias_name is None and norm is None:
        wanted = bias_names[0] if bias_names else f"bias of {name}"
        raise InputError(f"vgg_weights: {source} has no {wanted!r}")
    bias = weight.new_zeros(len(weight)) if bias_name is None else state[bias_name].double()
    for vector in (bias, *(norm or ())):
        if vector.shape != weight.shape[:1]:
            raise InputError(
                f"vgg_weights: {source}: what goes with {name!r} has shape {tuple(vector.shape)}, "
                f"must be ({len(weight)},)"
            )
    names = (name, *([] if bias_name is None else [bias_name]), *(norm_names if norm else []))
    return VGGLayer(weight, bias, names, norm)


def _norm_names(name: str) -> Sequence[str]:
    """Names of the batch normalisation that follows features.0.weight in a sequence."""
    match = re.fullmatch(r"(.*?)(\d+)\.weight", name)
    if match is None:
        return ()
    prefix = f"{match[1]}{int(match[2]) + 1}."
    return [prefix + part for part in _NORM_PARTS]


def _read_fc6(state: Mapping[str, Tensor]) -> VGGLayer | None:
    names = (f"{FC6_KEY}.weight", f"{FC6_KEY}.bias")
    if not set(names) <= state.keys():
        return None
    return VGGLayer(state[names[0]].float(), state[names[1]].float(), names)
