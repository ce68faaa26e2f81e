"""Classification networks as backbones: their maps of every stride, decoded to one map."""

from __future__ import annotations

import importlib.util
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.errors import InputError
from deepcrf_ext.models.backbones import evaluating, grey_image
from deepcrf_ext.models.fixed_buffers import FixedBuffers, channel_values

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
TRIAL_SIZE = 128
_STRIDES = (2, 4, 8, 16, 32)
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _thread() -> int | None:
    """Which thread this is; None in compiled code, which cannot tell."""
    return None if torch.compiler.is_compiling() else threading.get_ident()


class _Stop(Exception):
    """Ends a network after the last map that is needed."""


class FeatureMaps(nn.Module):
    """The last map of every stride in a network, whatever its class.

    A map is the output of a module that keeps its stride throughout, so a block that halves the
    resolution inside gives its output alone. What comes after the last map, such as a classifier,
    is not run (but for an export, which leaves out what is not used) and is taken out of the
    network. Several threads may call it at once.

    Args:
        network: from images [B, 3, H, W].
        strides: those that are wanted; H and W must be multiples of the largest.

    Attributes:
        channels: of each map, in the order of `strides`.

    Raises InputError when the network has no map of a stride, or takes images of one size alone.
    """

    def __init__(self, network: nn.Module, strides: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.strides = tuple(strides)
        self.names, sizes = _find_maps(network)
        missing = [stride for stride in self.strides if stride not in self.names]
        if missing:
            raise InputError(
                f"model.backbone: {type(network).__name__} has no map of stride {missing[0]}, only "
                f"of {', '.join(map(str, sorted(self.names)))}"
            )
        self.channels = tuple(sizes[stride] for stride in self.strides)
        with torch.no_grad(), evaluating(self):
            called = set(self._run(grey_image(network, TRIAL_SIZE, TRIAL_SIZE), every=True))
        for name, module in list(network.named_modules()):
            if name and name not in called and not any(True for _ in module.children()):
                _replace(network, name, nn.Identity())

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps [B, channels, H / stride, W / stride], in the order of `strides`."""
        maps = self._run(images)
        return [maps[self.names[stride]] for stride in self.strides]

    def _run(self, images: Tensor, every: bool = False) -> dict[str, Tensor]:
        """Outputs of the maps' modules, or of every one that runs before the last of them."""
        wanted = {self.names[stride] for stride in self.strides}
        outputs: dict[str, Tensor] = {}
        handles = []
        caller = _thread()
        for name, module in self.network.named_modules():
            if not name or not (every or name in wanted):
                continue

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if None not in (caller, here := _thread()) and here != caller:
                    return  # another thread's call of the same network
                outputs[name] = output
                # An export counts the modules that are entered and left.
                if wanted <= outputs.keys() and not _is_exporting():
                    raise _Stop

            handles.append(module.register_forward_hook(keep))
        try:
            self.network(images)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def _find_maps(network: nn.Module) -> tuple[dict[int, str], dict[int, int]]:
    """The module of the last map of each stride, and the channels of the map."""
    seen: list[tuple[str, int, int]] = []  # name, stride, channels, in the order of completion
    calls: Counter[str] = Counter()
    handles = []
    for name, module in network.named_modules():

        def note(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.dim() == 4:
                stride, rest = divmod(TRIAL_SIZE, output.shape[2])
                square = output.shape[2] == output.shape[3]  # channels are not the last axis
                if not rest and square and stride in _STRIDES:
                    seen.append((name, stride, output.shape[1]))

        if name:
            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), evaluating(network):
            network(grey_image(network, TRIAL_SIZE, TRIAL_SIZE))
    except Exception as error:  # whatever a network meets in an image that does not fit it
        raise InputError(
            f"model.backbone: {type(network).__name__} cannot see an image of {TRIAL_SIZE}x"
            f"{TRIAL_SIZE} pixels ({' '.join(str(error).split())}); must take images of any size"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(network.named_modules())
    strides = {name: stride for name, stride, _ in seen}
    names: dict[int, str] = {}
    channels: dict[int, int] = {}
    for name, stride, count in seen:
        if calls[name] > 1:  # an activation that blocks share
            continue
        parts = name.split(".")
        above = (".".join(parts[:length]) for length in range(1, len(parts)))
        if all(
            isinstance(modules[parent], nn.Sequential) or strides.get(parent, stride) == stride
            for parent in above
        ):
            names[stride], channels[stride] = name, count
    return names, channels


class _DepthwiseConv:
    """A depthwise convolution that leaves `torch.autocast` on a CPU, base of a convolution's class.

    Its gradient takes four to six times as long there in bfloat16 as in float32.
    """

    def forward(self, maps: Tensor) -> Tensor:
        plain = super().forward  # type: ignore[misc]
        if maps.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return plain(maps)
        with torch.autocast("cpu", enabled=False):
            return plain(maps.float()).to(maps.dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by the class that it was of, as its own has no name that could be looked up."""
        reduced: Any = super().__reduce_ex__(max(2, int(protocol)))
        return (_empty_depthwise, (type(self).__bases__[1],), *reduced[2:])


_DEPTHWISE: dict[type, type[nn.Conv2d]] = {}


def _depthwise(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """The class of a `_DepthwiseConv` in place of a convolution's."""
    if kind not in _DEPTHWISE:
        _DEPTHWISE[kind] = type(kind.__name__, (_DepthwiseConv, kind), {})
    return _DEPTHWISE[kind]


def _empty_depthwise(kind: type[nn.Conv2d]) -> nn.Conv2d:
    made = _depthwise(kind)
    return made.__new__(made)


def _leave_autocast(network: nn.Module) -> None:
    """Makes every depthwise convolution of a network a `_DepthwiseConv`."""
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, _DepthwiseConv):
            continue
        if module.groups == module.in_channels > 1:
            module.__class__ = _depthwise(type(module))


class PyramidBackbone(FixedBuffers):
    """A classification network and a light decoder: images to one map of features.

    The maps of strides `stride` to 32 are joined from the smallest up, as in feature pyramid
    networks (Lin et al., arXiv:1612.03144): each is projected to as many channels and added to the
    one below, grown by nearest neighbour; a 3x3 convolution closes.

    Args:
        network: from images to anything, with maps of these strides inside.
        stride: of the features: 2, 4, 8, 16 or 32.
        channels: of the features.
        mean, std: what the network expects to have been taken from images in 0..255, and what it
            expects them to have been divided by, [3] each.

    Input: [B, 3, H, W], less ImageNet's mean and over its deviation (`ImagePyramid`). Output: [B,
    channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        network: nn.Module,
        stride: int = 8,
        channels: int = 128,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if stride not in _STRIDES:
            raise InputError(
                f"model.pooled_blocks: gives the stride {stride}; a backbone has one of {_STRIDES}"
            )
        ours = [channel_values(values) for values in (IMAGENET_MEAN, IMAGENET_STD)]
        theirs = [channel_values(values) for values in (mean, std)]
        super().__init__(scale=ours[1] / theirs[1], shift=(ours[0] - theirs[0]) / theirs[1])
        self.stride, self.out_channels = stride, channels
        _leave_autocast(network)
        self.maps = FeatureMaps(network, [s for s in _STRIDES if s >= stride])
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.maps.channels)
        self.smooth = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor, scale: int = 0) -> Tensor:
        """The features; `scale` is for blocks whose normalisation depends on it."""
        height, width = images.shape[2:]
        largest = max(self.maps.strides)
        padded = functional.pad(
            images * self.scale + self.shift, (0, -width % largest, 0, -height % largest)
        )
        maps = self.maps(padded)
        result: Tensor = self.lateral[-1](maps[-1])
        for lateral, finer in zip(self.lateral[-2::-1], maps[-2::-1], strict=True):
            result = lateral(finer) + functional.interpolate(result, scale_factor=2.0)
        features: Tensor = self.smooth(result)
        return features[:, :, : -(-height // self.stride), : -(-width // self.stride)]


def named_backbone(name: str, stride: int = 8, channels: int = 128) -> PyramidBackbone:
    """A backbone from a library of networks, with random weights.

    Args:
        name: `timm:NAME`, `torchvision:NAME` or `efficientnet_lite:N` (0 to 4, of
            efficientnet_lite_pytorch).
        stride, channels: of the features.

    Raises InputError for a library that is not there and for a network that it does not have.
    """
    library, _, network = name.partition(":")
    if library == "timm":
        timm = _library("timm")
        made = _make(name, lambda: timm.create_model(network, pretrained=False))
        expected: Mapping[str, Any] = getattr(made, "pretrained_cfg", {})
        mean, std = ([255 * value for value in expected[key]] for key in ("mean", "std"))
        return PyramidBackbone(made, stride, channels, mean, std)
    if library == "torchvision":
        models = _library("torchvision.models")
        made = _make(name, lambda: models.get_model(network, weights=None))
        return PyramidBackbone(made, stride, channels)
    if library == "efficientnet_lite":
        lite = _library("efficientnet_lite_pytorch").EfficientNet
        made = _make(name, lambda: lite.from_name(f"efficientnet-lite{network}"))
        return PyramidBackbone(made, stride, channels, 3 * [127.0], 3 * [128.0])
    raise InputError(
        f"model.backbone: got {name!r}, must be vgg, timm:NAME, torchvision:NAME or "
        "efficientnet_lite:N"
    )


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library that does not fit its torch raises whatever it meets
        package = module.partition(".")[0]
        reason = " ".join(str(error).split())
        advice = f"pip install {package}"
        if importlib.util.find_spec(package) is not None:
            advice = f"it is installed, but does not fit torch {torch.__version__}"
            if "torchvision" in reason:
                advice += "; torchvision must be the one built for it"
        raise InputError(
            f"model.backbone: {package} cannot be imported ({reason}); {advice}"
        ) from error


def _make(name: str, build: Any) -> nn.Module:
    try:
        network: nn.Module = build()
    except Exception as error:  # each library has errors of its own for a name it does not know
        raise InputError(f"model.backbone: {name}: {' '.join(str(error).split())}") from error
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
