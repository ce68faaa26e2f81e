"""The initialisation from VGG-16: torchvision's files, with batch normalisation too, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from vgg_weights import CONV_KEYS, VGG_SHAPED, vgg_bn_state, vgg_state

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg_init import initialise_from_vgg16

TINY = ModelConfig(widths=(4, 6), convs=(1, 2), pooled_blocks=2, head_widths=(5, 3), hidden=8)
BLOCKS = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")


def vgg_blocks(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """What blocks 1-5 of torchvision's vgg16 and vgg16_bn give with these weights."""
    number, maps = 0, images
    for index in range(13):
        conv = f"features.{number}"
        maps = functional.conv2d(maps, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        number += 1
        norm = f"features.{number}"
        if f"{norm}.running_mean" in state:
            statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
            weights = (state[f"{norm}.weight"], state[f"{norm}.bias"])
            maps = functional.batch_norm(maps, *statistics, *weights)
            number += 1
        maps = maps.relu()
        number += 1
        if index in (1, 3, 6, 9, 12):
            maps = functional.max_pool2d(maps, 2)
            number += 1
    return maps


def named(rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The 13 convolutions by other names, in an order that means nothing."""
    state = vgg_state()
    tensors = {
        rename(f"{block}.{part}"): state[f"{key}.{part}"]
        for block, key in zip(BLOCKS, CONV_KEYS, strict=True)
        for part in ("weight", "bias")
    }
    return dict(sorted(tensors.items(), reverse=True))


def turned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.permute(2, 3, 1, 0).contiguous() if v.dim() == 4 else v for n, v in state.items()}


def test_vgg_weights_reach_every_potential(tmp_path: Path) -> None:
    state = vgg_state()
    torch.save(state, tmp_path / "vgg16.pth")
    model = DeepCRF(VGG_SHAPED, 3)
    loaded = initialise_from_vgg16(model, str(tmp_path / "vgg16.pth"))
    assert str(loaded) == "56 of 56 tensors taken; 1 of the file left (classifier.6.weight)"
    for network in model.potentials.values():
        convs = [*network.features.blocks.convs(), network.features.head.fc6()]
        for key, conv in zip(CONV_KEYS, convs[:-1], strict=True):
            assert torch.equal(conv.weight, state[f"{key}.weight"])
            assert torch.equal(conv.bias, state[f"{key}.bias"])
        # On a 7x7 map, the centre of the convolution is the fully connected layer.
        maps = torch.randn(2, 6, 7, 7)
        connected = functional.linear(
            maps.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]
        )
        torch.testing.assert_close(convs[-1](maps)[:, :, 3, 3], connected)
    first, second, *_ = model.potentials.values()
    assert first.features.head[0].weight is not second.features.head[0].weight


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg16_bn_gives_the_same_maps(tmp_path: Path, batch_norm: bool) -> None:
    state = vgg_bn_state()
    torch.save({"state_dict": state}, tmp_path / "vgg16_bn.pth")
    model = DeepCRF(replace(VGG_SHAPED, batch_norm=batch_norm), 3).eval().double()
    loaded = initialise_from_vgg16(model, str(tmp_path / "vgg16_bn.pth"))
    images = torch.randn(2, 3, 64, 96).double()
    expected = vgg_blocks({name: value.double() for name, value in state.items()}, images)
    for network in model.potentials.values():
        for scale in range(3 if batch_norm else 1):
            torch.testing.assert_close(network.features.blocks(images, scale), expected)
    own = 13 * (1 + 4 * 3) if batch_norm else 26
    assert len(loaded.taken) == 2 * own
    assert all("head" in name for name in loaded.missing)  # without a classifier
    assert set(loaded.left) == {name for name in state if name.endswith("num_batches_tracked")}


def test_vgg16_in_a_model_that_normalises(tmp_path: Path) -> None:
    """Biases in front of a normalisation do nothing; the file's are left."""
    torch.save(vgg_state(), tmp_path / "vgg16.pth")
    model = DeepCRF(replace(VGG_SHAPED, batch_norm=True), 3)
    loaded = initialise_from_vgg16(model, str(tmp_path / "vgg16.pth"))
    assert len(loaded.taken) == 2 * 14
    assert "features.0.bias" in loaded.left
    convs = model.potentials["unary"].features.blocks.convs()
    assert convs[12].weight.equal(vgg_state()["features.28.weight"])


@pytest.mark.parametrize(
    "state",
    [
        named(lambda name: f"conv{name}"),
        named(lambda name: f"net.block{name.replace('_', '.conv')}"),
        named(lambda name: f"{BLOCKS.index(name.split('.')[0])}.{name.split('.')[1]}"),
        named(lambda name: f"conv{name.replace('.weight', '/W').replace('.bias', '/b')}"),
        turned(named(lambda name: f"conv{name.replace('weight', 'kernel')}")),
    ],
    ids=["conv1_1", "block1.conv1", "numbers", "W and b", "kernels [3, 3, in, out]"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_13_convolutions_alone(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    file = tmp_path / f"convs{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    model = DeepCRF(VGG_SHAPED, 3)
    head = model.potentials["unary"].features.head.fc6().weight.clone()
    loaded = initialise_from_vgg16(model, str(file))
    assert str(loaded).startswith("52 of 56 tensors taken; 4 not in the file (potentials.unary.")
    assert not loaded.left
    for key, conv in zip(CONV_KEYS, model.potentials["unary"].features.blocks.convs(), strict=True):
        assert conv.weight.equal(vgg_state()[f"{key}.weight"])
        assert conv.bias.equal(vgg_state()[f"{key}.bias"])
    assert model.potentials["unary"].features.head.fc6().weight.equal(head)


def test_fc6_of_another_shape_is_left(tmp_path: Path) -> None:
    torch.save({**vgg_state(), "classifier.0.weight": torch.zeros(7, 6)}, tmp_path / "vgg16.pth")
    loaded = initialise_from_vgg16(DeepCRF(VGG_SHAPED, 3), str(tmp_path / "vgg16.pth"))
    assert "classifier.0.weight" in loaded.left
    assert len(loaded.missing) == 4


def test_vgg_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "vgg16.pth"

    def fails(state: object, model: nn.Module, *named: str) -> None:
        if isinstance(state, bytes):
            file.write_bytes(state)
        else:
            torch.save(state, file)
        with pytest.raises(InputError, match="vgg_weights: ") as caught:
            initialise_from_vgg16(model, str(file))
        for name in named:
            assert name in str(caught.value)

    model = DeepCRF(VGG_SHAPED, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = vgg_state()
    missing = {key: value for key, value in state.items() if key != "features.5.bias"}
    fails(missing, model, str(file), "features.5.bias")
    fails(
        {**state, "features.5.bias": torch.zeros(9)}, model, "'features.5.weight'", "(9,)", "(3,)"
    )
    few = {**state, "features.28.weight": torch.zeros(6, 6, 1, 1)}
    fails(few, model, "holds 12 kernels of 3x3", "13")
    fails({"epoch": 3}, model, str(file))
    fails(b"", model, str(file))
    torch.save(state, file)
    fails(file.read_bytes()[:700], model, str(file))
    fails(state, DeepCRF(TINY, 3), "13 convolutions")
    wide = replace(VGG_SHAPED, widths=(2, 3, 4, 5, 8))
    fails(state, DeepCRF(wide, 3), "'features.24.weight'", "(6, 5, 3, 3)", "(8, 5, 3, 3)")
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="no such file"):
        initialise_from_vgg16(model, str(tmp_path / "nowhere.pth"))


def test_without_a_network_it_says_which_file_to_get(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(InputError, match=r"download https://\S+vgg16\S+\.pth \(.*no network.*path"):
        initialise_from_vgg16(DeepCRF(TINY, 3), "download")
