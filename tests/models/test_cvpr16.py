"""The later form of the model (CVPR 2016): shared blocks, sliding pyramid pooling, own block 6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from vgg_weights import CONV_KEYS, VGG_SHAPED, vgg_state

from deepcrf_ext.config import ModelConfig, TrainConfig, preset
from deepcrf_ext.data import open_dataset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg import ScaleNorm
from deepcrf_ext.models.vgg_init import initialise_from_vgg16
from deepcrf_ext.training.trainer import Trainer

K = 4
TINY = ModelConfig(
    widths=(4, 6),
    convs=(1, 1),
    pooled_blocks=2,
    head_widths=(5, 3),
    hidden=4,
    pairwise_hidden=8,
    share_blocks=True,
    head_per_scale=True,
    pooling_windows=(3, 5),
    upsampling="bilinear",
    potentials="all",
)


@pytest.fixture
def model() -> DeepCRF:
    torch.manual_seed(0)
    return DeepCRF(TINY, K).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(1)) * 255


def test_features_are_sliding_maxima_of_every_scales_own_block_6(
    model: DeepCRF, images: torch.Tensor
) -> None:
    part = model.potentials[model.potential_names[0]].features
    heads = [part.head, *part.further_heads]
    assert len(heads) == 3
    norms = [m for head in heads for m in head.modules() if isinstance(m, ScaleNorm)]
    assert [len(norm) for norm in norms] == [1] * 6  # each for its own scale alone
    expected = []
    for head, image in zip(heads, model.pyramid(images), strict=True):
        features = head(model.blocks(image))
        height, width = features.shape[2:]
        levels = [features]
        for window in (3, 5):
            maxima = torch.empty_like(features)
            for row in range(height):
                for column in range(width):
                    rows = slice(max(row - window // 2, 0), row + window // 2 + 1)
                    columns = slice(max(column - window // 2, 0), column + window // 2 + 1)
                    maxima[:, :, row, column] = features[:, :, rows, columns].amax(dim=(2, 3))
            levels.append(maxima)
        joined = torch.cat(levels, dim=1)
        size = expected[0].shape[1:3] if expected else joined.shape[2:]
        grown = functional.interpolate(joined, size, mode="bilinear", align_corners=False)
        expected.append(grown.permute(0, 2, 3, 1))
    torch.testing.assert_close(part(model.inputs(images)), torch.cat(expected, dim=3))


def calls(model: DeepCRF, body: Callable[[], object]) -> int:
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1

    hook = model.blocks.register_forward_hook(counted)
    body()
    hook.remove()
    return count


def test_shared_blocks_run_once_a_scale(model: DeepCRF, images: torch.Tensor) -> None:
    labels = torch.zeros(2, 40, 30, dtype=torch.int64)
    assert calls(model, lambda: model.losses(images, labels)) == 3
    assert calls(model, lambda: model.predict(images, "1unary+2pair")) == 3
    assert calls(model, lambda: model.predict(images, "unary-1scale")) == 1


def test_potentials_share_the_blocks_and_nothing_else(model: DeepCRF) -> None:
    owned = [
        id(p) for module in (model.blocks, *model.potentials.values()) for p in module.parameters()
    ]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))
    state = model.state_dict()
    assert any(key.startswith("blocks.") for key in state)
    assert not any(".blocks." in key for key in state)


@pytest.mark.parametrize("share", [True, False])
def test_a_training_step_descends_the_sum_of_all_losses(share: bool) -> None:
    config = TrainConfig(
        model=replace(TINY, share_blocks=share, batch_norm=False),
        warm_start=0.0,
        device="cpu",
        amp=False,
    )
    data = open_dataset("scenes", None, "val")
    trainer, reference = (Trainer(config, data, data) for _ in range(2))
    images = torch.rand(2, 3, 40, 30) * 255
    labels = torch.randint(0, 12, (2, 40, 30))
    sum(reference.model.losses(images, labels).values()).backward()
    reference.optimiser.step()
    trainer.step(images, labels)
    pairs = zip(trainer.model.parameters(), reference.model.parameters(), strict=True)
    for stepped, expected in pairs:
        torch.testing.assert_close(stepped, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 120)])
def test_prediction_of_any_size(model: DeepCRF, size: tuple[int, int]) -> None:
    with torch.no_grad():
        marginals = model.predict(torch.rand(1, 3, *size) * 255, "1unary+2pair")
    assert marginals.shape == (1, K, *size)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, *size))


def test_relations_start_from_the_unary(model: DeepCRF, images: torch.Tensor) -> None:
    model.start_relations_from_unary()
    energies = model.energies(images)
    unary = energies.unaries["unary"]
    potential = energies.pairwise["above_below"]
    first, second = potential.graph.edge_index()
    expected = unary[first][:, :, None] + unary[second][:, None]
    torch.testing.assert_close(potential.energies(), expected)


def test_vgg_weights_reach_the_shared_blocks_and_every_block_6(tmp_path) -> None:
    state = vgg_state()
    torch.save(state, tmp_path / "vgg16.pth")
    config = replace(VGG_SHAPED, share_blocks=True, head_per_scale=True, pooled_blocks=4)
    model = DeepCRF(config, 3)
    initialise_from_vgg16(model, str(tmp_path / "vgg16.pth"))
    for key, conv in zip(CONV_KEYS, model.blocks.convs(), strict=True):
        assert torch.equal(conv.weight, state[f"{key}.weight"])
    for network in model.potentials.values():
        for head in (network.features.head, *network.features.further_heads):
            fc6 = state["classifier.0.weight"].view_as(head.fc6().weight)
            assert torch.equal(head.fc6().weight, fc6)


def test_networks_of_both_presets_at_full_width() -> None:
    """The node grid is at stride 16 of the largest scale; every scale gives 512 x 3 features."""
    with torch.device("meta"):
        model = DeepCRF(preset("cvpr16").model, 21)
        first = model.potentials[model.potential_names[0]]
        features = first.features(model.inputs(torch.empty(1, 3, 320, 480)))
    assert features.shape == (1, 24, 36, 3 * 3 * 512)


@pytest.mark.parametrize("name", ["paper", "cvpr16"])
def test_batch_norm_can_be_added_to_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        model = DeepCRF(replace(preset(name).model, batch_norm=True), 21)
        last = model.potentials[model.potential_names[-1]]
        features = last.features(model.inputs(torch.empty(2, 3, 96, 128)))
    assert features.shape[3] == last.source.in_features
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, ScaleNorm)]
    assert len(convs) == len(norms)
    assert all(conv.bias is None for conv in convs)
