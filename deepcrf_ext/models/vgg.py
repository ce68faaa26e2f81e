"""Network Part-1 of the paper (section 4.1): VGG-16 blocks 1-5 and a convolutional block 6."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.parallel.batch_norm import BatchNorm


class ScaleNorm(nn.ModuleList):
    """A batch normalisation for each scale that shares the convolution before it.

    Maps of a small scale have other means and deviations than those of a large one (more of them
    is padding), so statistics that scales share would fit none of them.
    """

    def __init__(self, channels: int, num_scales: int) -> None:
        super().__init__(BatchNorm(channels) for _ in range(num_scales))

    def forward(self, maps: Tensor, scale: int) -> Tensor:
        """Normalises [B, C, h, w] of the scale with this number."""
        normal: Tensor = self[scale](maps)
        return normal


class ScaleSequential(nn.Sequential):
    """Layers one after another, of which the normalising ones know the scale they work on."""

    def forward(self, maps: Tensor, scale: int = 0) -> Tensor:
        """Maps [B, C, h, w] of the scale with this number (0 is the largest)."""
        for layer in self:
            if isinstance(layer, (ScaleNorm, ScaleSequential)):
                maps = layer(maps, scale)
            else:
                maps = layer(maps)
        return maps


def _conv(
    inputs: int, outputs: int, kernel: int, config: ModelConfig, num_scales: int
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not config.batch_norm)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norm: list[nn.Module] = [ScaleNorm(outputs, num_scales)] if config.batch_norm else []
    return [conv, *norm, nn.ReLU(inplace=True)]


class CeilMaxPool(nn.MaxPool2d):
    """2x2 max pooling that rounds up: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)

    def forward(self, maps: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(maps)
        # With sizes unknown, pooling asks whether the last window begins within the map (torch
        # 2.11 and before: whether it fits), and an export would hold for sizes of that answer
        # alone. Maxima over windows as axes, of a line more, make no such question.
        windows = functional.pad(maps, (0, 1, 0, 1), value=-torch.inf).unfold(2, 2, 2)
        return windows.unfold(3, 2, 2).amax((4, 5))


class VGGBlocks(ScaleSequential):
    """Blocks 1-5: [B, 3, H, W] -> [B, widths[-1], h, w].

    Blocks of 3x3 convolutions, the first `pooled_blocks` of them closed by 2x2 max pooling that
    rounds up, so h = ceil(H / 2**pooled_blocks) and images down to 1x1 work. A ReLU follows every
    convolution and padding keeps the size.

    Args:
        config: the settings.
        num_scales: how many scales it is applied to.
    """

    def __init__(self, config: ModelConfig, num_scales: int) -> None:
        channels = 3
        blocks: list[nn.Module] = []
        for index, (width, convs) in enumerate(zip(config.widths, config.convs, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(convs):
                layers += _conv(channels, width, 3, config, num_scales)
                channels = width
            if index < config.pooled_blocks:
                layers.append(CeilMaxPool())
            blocks.append(ScaleSequential(*layers))
        super().__init__(*blocks)

    def convs(self) -> list[nn.Conv2d]:
        """The convolutions in order."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]


class Block6(ScaleSequential):
    """Block 6: a 7x7 (VGG-16's fc6) and several 3x3 convolutions, a ReLU after each.

    [B, widths[-1], h, w] -> [B, head_widths[-1], h, w]. Without head widths the maps stay.

    Args:
        config: the settings.
        num_scales: how many scales it is applied to.
    """

    def __init__(self, config: ModelConfig, num_scales: int) -> None:
        channels = config.widths[-1]
        layers: list[nn.Module] = []
        for index, width in enumerate(config.head_widths):
            layers += _conv(channels, width, 7 if index == 0 else 3, config, num_scales)
            channels = width
        super().__init__(*layers)

    def fc6(self) -> nn.Conv2d:
        """The 7x7 convolution."""
        first = self[0]
        assert isinstance(first, nn.Conv2d)
        return first
