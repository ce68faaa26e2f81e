"""Network Part-1 of the paper (section 4.1): VGG-16 blocks 1-5 and a convolutional block 6."""

from __future__ import annotations

from torch import nn

from deepcrf_ext.config import ModelConfig


def _conv(inputs: int, outputs: int, kernel: int, batch_norm: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    norm: list[nn.Module] = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return [conv, *norm, nn.ReLU(inplace=True)]


class VGGBlocks(nn.Sequential):
    """Blocks 1-5: [B, 3, H, W] -> [B, widths[-1], h, w].

    Blocks of 3x3 convolutions, the first `pooled_blocks` of them closed by 2x2 max pooling that
    rounds up, so h = ceil(H / 2**pooled_blocks) and images down to 1x1 work. A ReLU follows every
    convolution and padding keeps the size.
    """

    def __init__(self, config: ModelConfig) -> None:
        channels = 3
        blocks: list[nn.Module] = []
        for index, (width, convs) in enumerate(zip(config.widths, config.convs, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(convs):
                layers += _conv(channels, width, 3, config.batch_norm)
                channels = width
            if index < config.pooled_blocks:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            blocks.append(nn.Sequential(*layers))
        super().__init__(*blocks)

    def convs(self) -> list[nn.Conv2d]:
        """The convolutions in order."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]


class Block6(nn.Sequential):
    """Block 6: a 7x7 (VGG-16's fc6) and several 3x3 convolutions, a ReLU after each.

    [B, widths[-1], h, w] -> [B, head_widths[-1], h, w].
    """

    def __init__(self, config: ModelConfig) -> None:
        channels = config.widths[-1]
        layers: list[nn.Module] = []
        for index, width in enumerate(config.head_widths):
            layers += _conv(channels, width, 7 if index == 0 else 3, config.batch_norm)
            channels = width
        super().__init__(*layers)

    def fc6(self) -> nn.Conv2d:
        """The 7x7 convolution."""
        first = self[0]
        assert isinstance(first, nn.Conv2d)
        return first
