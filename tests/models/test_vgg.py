"""Network Part-1 and the image pyramid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from deepcrf_ext.config import ModelConfig, preset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.features import FeatureNet, ImagePyramid
from deepcrf_ext.models.vgg import Block6, VGGBlocks

TINY = ModelConfig(widths=(4, 6), convs=(1, 2), pooled_blocks=2, head_widths=(5, 3), hidden=8)


def test_paper_part_is_vgg16_with_a_convolutional_block_6():
    with torch.device("meta"):
        part = FeatureNet(preset("paper").model, 1)
        output = part([torch.empty(1, 3, 540, 720)])
    # torchvision's configuration D, and block 6 of the paper.
    vgg = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", *[512] * 3, "M", *[512] * 3, "M"]
    expected: list[object] = []
    channels = 3
    for width in vgg:
        if width == "M":
            expected.append("pool")
        else:
            expected += [(channels, width, (3, 3), (1, 1)), "relu"]
            channels = width
    for width, kernel in ((4096, 7), (512, 3), (512, 3)):
        expected += [(channels, width, (kernel, kernel), (kernel // 2, kernel // 2)), "relu"]
        channels = width
    found: list[object] = []
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert layer.stride == (1, 1)
            found.append((layer.in_channels, layer.out_channels, layer.kernel_size, layer.padding))
        elif isinstance(layer, nn.ReLU):
            found.append("relu")
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            found.append("pool")
        else:
            assert isinstance(layer, nn.Sequential | nn.ModuleList | FeatureNet)
    assert found == expected
    assert output.shape == (1, 17, 23, 512)


def test_blocks_beyond_the_pooled_ones_keep_the_size():
    config = replace(TINY, widths=(4, 6, 8), convs=(1, 1, 1))
    for pooled, size in ((0, (9, 13)), (1, (5, 7)), (2, (3, 4)), (3, (2, 2))):
        blocks = VGGBlocks(replace(config, pooled_blocks=pooled), 1)
        assert blocks(torch.zeros(1, 3, 9, 13), 0).shape == (1, 8, *size)


def test_convolutions_start_with_a_variance_that_relu_keeps():
    """He et al. 2015: 2 over the number of inputs."""
    torch.manual_seed(0)
    block = Block6(replace(TINY, widths=(16, 16), head_widths=(32, 64), batch_norm=False), 1)
    first, second = (layer for layer in block if isinstance(layer, nn.Conv2d))
    assert first.weight.std().item() == pytest.approx((2 / (16 * 49)) ** 0.5, rel=0.05)
    assert second.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert first.bias is not None
    assert not first.bias.any()


def test_without_block_6_the_maps_of_the_blocks_are_the_features():
    config = replace(TINY, head_widths=(), share_blocks=True, pooling_windows=(3,), hidden=4)
    features = FeatureNet(config, 3)
    assert not list(features.parameters())
    maps = torch.rand(2, 6, 5, 7)
    output = features([maps, maps[..., :3, :4], maps[..., :2, :2]])
    assert output.shape == (2, 5, 7, features.channels) == (2, 5, 7, 36)
    assert torch.equal(output[..., :6], maps.permute(0, 2, 3, 1))
    model = DeepCRF(config, 3)
    losses = model.losses(torch.rand(1, 3, 24, 32), torch.zeros(1, 24, 32, dtype=torch.long))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 7), (17, 32)])
def test_output_grid_is_rounded_up(size):
    part = nn.Sequential(VGGBlocks(TINY, 1), Block6(TINY, 1))
    output = part.eval()(torch.rand(2, 3, *size))
    assert output.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))


def test_every_scale_is_normalised_by_its_own_statistics():
    config = replace(TINY, batch_norm=True)
    torch.manual_seed(0)
    part = nn.Sequential(VGGBlocks(config, 2), Block6(config, 2))
    images = torch.rand(2, 2, 3, 16, 24) * torch.tensor([1.0, 50.0])[:, None, None, None, None]

    def run(scale):
        return part[1](part[0](images[scale], scale), scale)

    for _ in range(200):
        trained = run(0), run(1)
    part.eval()
    # Running variances are unbiased and those of a batch are not, so the two differ a little.
    for scale in (0, 1):
        torch.testing.assert_close(run(scale), trained[scale], rtol=0.05, atol=0.05)
    assert not torch.allclose(run(0), part[1](part[0](images[0], 1), 1), atol=0.5)


def test_pyramid_normalises_and_resizes():
    images = torch.rand(2, 3, 10, 7) * 255
    pyramid = ImagePyramid((1.2, 1.0, 0.01))(images)
    assert [tuple(level.shape[2:]) for level in pyramid] == [(12, 8), (10, 7), (1, 1)]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(pyramid[1], (images / 255 - mean) / std)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        ImagePyramid((1.0,))(images[0])


def test_features_are_one_network_over_all_scales():
    part = FeatureNet(TINY, 3).eval()
    pyramid = ImagePyramid((1.2, 0.8, 0.4))(torch.rand(2, 3, 40, 30) * 255)
    features = part(pyramid)
    maps = [part.head(part.blocks(level)) for level in pyramid]
    height, width = maps[0].shape[2:]
    assert features.shape == (2, height, width, 9)
    for level, small in enumerate(maps):
        rows = torch.arange(height) * small.shape[2] // height
        columns = torch.arange(width) * small.shape[3] // width
        grown = small[:, :, rows][:, :, :, columns].permute(0, 2, 3, 1)
        torch.testing.assert_close(features[..., 3 * level : 3 * level + 3], grown)
