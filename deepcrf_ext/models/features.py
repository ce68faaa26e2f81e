"""Multi-scale features of the nodes (paper, section 4.1): networks over an image pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.models.fixed_buffers import FixedBuffers, channel_values
from deepcrf_ext.models.pyramid_backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PyramidBackbone,
    named_backbone,
)
from deepcrf_ext.models.vgg import Block6, VGGBlocks
from deepcrf_ext.ops._tensor_checks import check_device


def make_blocks(config: ModelConfig, num_scales: int) -> VGGBlocks | PyramidBackbone:
    """Blocks 1-5 of VGG, or the backbone of the settings with the same stride and channels."""
    if config.backbone == "vgg":
        return VGGBlocks(config, num_scales)
    return named_backbone(config.backbone, 2**config.pooled_blocks, config.widths[-1])


class ImagePyramid(FixedBuffers):
    """Normalises images and resizes them bilinearly to every scale.

    Input: RGB [B, 3, H, W], 0..255. Output: for each scale a channels-last float32
    [B, 3, max(1, round(scale * H)), max(1, round(scale * W))].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scales: Sequence[float]) -> None:
        mean, std = (channel_values(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
        super().__init__(mean=mean, std=std)
        self.scales = tuple(scales)
        ratios = [Fraction(scale).limit_denominator(10_000) for scale in self.scales]
        self._ratios = [(ratio.numerator, ratio.denominator) for ratio in ratios]

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(images)
        check_device("images", images.device, self.mean.device, "the model")
        height, width = images.shape[2:]
        normal = ((images.float() - self.mean) / self.std).to(self.mean.dtype)  # of the networks
        normal = normal.contiguous(memory_format=torch.channels_last)
        return [
            functional.interpolate(normal, size, mode="bilinear", align_corners=False)
            for size in self.sizes(height, width)
        ]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width at each scale of an image of this size."""
        return [(_scaled(height, *ratio), _scaled(width, *ratio)) for ratio in self._ratios]


def check_images(images: Tensor) -> None:
    """Raises TypeError for what is no tensor, ValueError for one that is not [B, 3, H, W]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, must be a torch.Tensor")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: got shape {list(images.shape)}, must be [B, 3, H, W]")


def _scaled(side: int, numerator: int, denominator: int) -> int:
    """max(1, side · numerator / denominator, rounded), as an export can follow for any side."""
    return max(1, (2 * numerator * side + denominator) // (2 * denominator))


class FeatureNet(nn.Module):
    """Images of several scales to the features of the nodes, on the grid of the largest scale.

    The first paper's form (section 4.1): blocks 1-6 run over every scale, and smaller maps grow to
    the largest by nearest neighbour. The CVPR'16 form (arXiv:1504.01013v4, section 5, FeatMap-Net):
    every scale has a block 6 of its own, whose map is joined by its maxima over sliding windows of
    several sizes (sliding pyramid pooling), and grows bilinearly.

    Args:
        config: the settings; with `share_blocks`, blocks 1-5 are elsewhere and their maps come in.
        num_scales: how many scales, the largest first, come in.
    """

    def __init__(self, config: ModelConfig, num_scales: int) -> None:
        super().__init__()
        self.blocks = None if config.share_blocks else make_blocks(config, num_scales)
        further = num_scales - 1 if config.head_per_scale else 0
        self.head = Block6(config, num_scales - further)
        self.further_heads = nn.ModuleList(Block6(config, 1) for _ in range(further))
        self.windows = config.pooling_windows
        self.upsampling, self.dropout = config.upsampling, config.dropout
        width = (config.widths + config.head_widths)[-1]
        self.channels = num_scales * (1 + len(self.windows)) * width

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Features [B, h, w, channels] from [B, C, h_s, w_s] of every scale, the largest first."""
        maps = [self._features(index, scale) for index, scale in enumerate(scales)]
        size = maps[0].shape[2:]
        corners = False if self.upsampling == "bilinear" else None
        grown = [
            functional.interpolate(m, size, mode=self.upsampling, align_corners=corners)
            for m in maps[1:]
        ]
        features = torch.cat([m.permute(0, 2, 3, 1) for m in (maps[0], *grown)], dim=3)
        return functional.dropout(features, self.dropout, self.training)

    def _features(self, index: int, maps: Tensor) -> Tensor:
        if self.blocks is not None:
            maps = self.blocks(maps, index)
        features: Tensor
        if index and self.further_heads:
            features = self.further_heads[index - 1](maps)
        else:
            features = self.head(maps, index)
        pooled = [
            functional.max_pool2d(features, window, stride=1, padding=window // 2)
            for window in self.windows
        ]
        return torch.cat([features, *pooled], dim=1) if pooled else features


class BackboneFeatures(nn.Module):
    """The features of a network handed in, which all potentials share, as those of the nodes.

    Args:
        channels: of the features.
        dropout: the share of them that training leaves out.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout

    def forward(self, scales: Sequence[Tensor]) -> Tensor:
        """Features [B, h, w, C] from the one map [B, C, h, w]."""
        return functional.dropout(scales[0].permute(0, 2, 3, 1), self.dropout, self.training)
