"""A model with the layers of VGG-16, narrowed, and random weights in torchvision's names for it."""

from __future__ import annotations

import torch

from deepcrf_ext.config import ModelConfig

CONV_KEYS = tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
VGG_SHAPED = ModelConfig(
    widths=(2, 3, 4, 5, 6),
    convs=(2, 2, 3, 3, 3),
    pooled_blocks=5,
    head_widths=(7, 4),
    batch_norm=False,
    hidden=4,
    potentials=("unary", "surrounding"),
)


def vgg_state() -> dict[str, torch.Tensor]:
    """A state dict of torchvision's layout whose shapes fit VGG_SHAPED."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    channels, keys = 3, iter(CONV_KEYS)
    for width, convs in zip(VGG_SHAPED.widths, VGG_SHAPED.convs, strict=True):
        for _ in range(convs):
            key = next(keys)
            state[f"{key}.weight"] = torch.randn(width, channels, 3, 3, generator=generator)
            state[f"{key}.bias"] = torch.randn(width, generator=generator)
            channels = width
    state["classifier.0.weight"] = torch.randn(7, channels * 49, generator=generator)
    state["classifier.0.bias"] = torch.randn(7, generator=generator)
    state["classifier.6.weight"] = torch.randn(10, 7, generator=generator)
    return state


def vgg_bn_state() -> dict[str, torch.Tensor]:
    """The same in the layout of torchvision's vgg16_bn, statistics as if trained."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, torch.Tensor] = {}
    plain, number = vgg_state(), 0
    for index, key in enumerate(CONV_KEYS):
        width = len(plain[f"{key}.bias"])
        state[f"features.{number}.weight"] = plain[f"{key}.weight"]
        state[f"features.{number}.bias"] = plain[f"{key}.bias"]
        for name, low in (("weight", 0.5), ("bias", -1), ("running_mean", -1), ("running_var", 1)):
            value = low + torch.rand(width, generator=generator)
            state[f"features.{number + 1}.{name}"] = value
        state[f"features.{number + 1}.num_batches_tracked"] = torch.tensor(7)
        number += 3 + (index in (1, 3, 6, 9, 12))
    return state
