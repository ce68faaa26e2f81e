"""Any classification network as a backbone: which maps are taken, and weights from files."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.errors import InputError
from deepcrf_ext.models.features import ImagePyramid
from deepcrf_ext.models.network_weights import load_network_weights, read_state_dict
from deepcrf_ext.models.pyramid_backbone import FeatureMaps, PyramidBackbone, named_backbone


class Block(nn.Module):
    """Widens at the stride that comes in and halves the resolution inside, as a bottleneck does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(inputs, 3 * inputs, 1)
        self.down = nn.Conv2d(3 * inputs, outputs, 3, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.down(self.wide(maps).relu())


class Network(nn.Module):
    """Strides 2 to 32, one activation for all of it, and a classifier."""

    def __init__(self, last: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.stages = nn.ModuleList(
            nn.Sequential(Block(count - 1, count), nn.Conv2d(count, count, 1))
            for count in range(3, last + 1)
        )
        self.head = nn.Linear(last, 1000)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.act(self.stem(images))
        for stage in self.stages:
            maps = self.act(stage(maps))
        return self.head(maps.mean((2, 3)))


def test_the_last_map_of_every_stride_is_found() -> None:
    maps = FeatureMaps(Network(), (2, 4, 8, 16, 32))
    assert maps.channels == (2, 3, 4, 5, 6)
    outputs = maps(torch.randn(2, 3, 64, 96))
    for channels, stride, output in zip(maps.channels, maps.strides, outputs, strict=True):
        assert output.shape == (2, channels, 64 // stride, 96 // stride)
    expected = Network()
    expected.load_state_dict(maps.network.state_dict(), strict=False)
    image = torch.randn(1, 3, 32, 32)
    value = expected.stages[0](expected.act(expected.stem(image)))
    torch.testing.assert_close(maps(image)[1], value)


def test_what_is_not_run_is_taken_out() -> None:
    maps = FeatureMaps(Network(), (8,))
    assert isinstance(maps.network.head, nn.Identity)
    assert not list(maps.network.stages[3].parameters())
    maps(torch.randn(1, 3, 32, 32))[0].sum().backward()
    assert all(p.grad is not None for p in maps.parameters())


def test_a_network_without_a_stride_is_refused() -> None:
    with pytest.raises(InputError, match="Network has no map of stride 32, only of 2, 4, 8, 16"):
        PyramidBackbone(Network(last=5))


@pytest.mark.parametrize("stride", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (45, 33), (1, 7)])
def test_features_have_the_stride_that_is_asked_for(stride: int, size: tuple[int, int]) -> None:
    backbone = PyramidBackbone(Network(), stride, channels=5)
    features = backbone(torch.randn(2, 3, *size))
    assert features.shape == (2, 5, -(-size[0] // stride), -(-size[1] // stride))
    features.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


class Widen(nn.Conv2d):
    """A convolution with a forward of its own, as networks with padding of theirs have."""

    def forward(self, maps: Tensor) -> Tensor:
        return 2 * super().forward(maps)


def test_depthwise_convolutions_leave_autocast_on_a_cpu() -> None:
    network = Network()
    network.act = nn.Sequential(nn.ReLU())
    network.stages[1].append(Widen(4, 4, 3, padding=1, groups=4))
    backbone = PyramidBackbone(network, 8)
    seen: list[tuple[Tensor, Tensor]] = []
    copied = copy.deepcopy(backbone)
    conv = copied.maps.network.stages[1][-1]
    assert isinstance(conv, Widen)
    conv.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.autocast("cpu", torch.bfloat16):
        copied(torch.randn(1, 3, 64, 64)).float().sum().backward()
    inputs, output = seen[0]
    assert inputs.dtype == output.dtype == torch.bfloat16
    exact = 2 * functional.conv2d(inputs.float(), conv.weight, conv.bias, padding=1, groups=4)
    assert torch.equal(output, exact.bfloat16())
    assert conv.weight.grad is not None
    assert backbone.maps.network.stages[1][-1].weight.grad is None
    copied(torch.randn(1, 3, 64, 64))
    assert seen[1][1].dtype == torch.float32


def depthwise() -> PyramidBackbone:
    network = Network()
    network.stages[1].append(Widen(4, 4, 3, padding=1, groups=4))
    return PyramidBackbone(network, 8, channels=5).eval()


def test_copies_compute_the_same() -> None:
    backbone, images = depthwise(), torch.randn(1, 3, 45, 33)
    for same in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(same(images), backbone(images))
        assert type(same.maps.network.stages[1][-1]) is type(backbone.maps.network.stages[1][-1])
    again = PyramidBackbone(backbone.maps.network, 16)
    assert isinstance(again.maps.network.stages[1][-1], Widen)


def test_made_without_memory() -> None:
    backbone, images = depthwise(), torch.randn(1, 3, 45, 33)
    wanted = backbone(images)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.to_empty(device="cpu")
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor.data.fill_(0)  # what memory holds
    backbone.load_state_dict(state)
    assert torch.equal(backbone(images), wanted)
    with torch.device("meta"):
        backbone = depthwise()
    backbone.load_state_dict(state, assign=True)
    assert torch.equal(backbone(images), wanted)


def test_a_network_is_tried_where_it_is() -> None:
    network = Network()
    with torch.device("meta"):
        assert PyramidBackbone(network, 8, channels=5).out_channels == 5


@torch.no_grad()
def test_threads_share_a_network() -> None:
    backbone = depthwise()
    images = [torch.randn(1, 3, 32, 32 * width) for width in range(1, 5)]
    wanted = [backbone(image) for image in images]

    @torch.no_grad()
    def run(index: int) -> bool:
        return torch.equal(backbone(images[index % 4]), wanted[index % 4])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(200)))


def test_exports() -> None:
    backbone, images = depthwise(), torch.randn(1, 3, 45, 33)
    program = torch.export.export(backbone, (images,), strict=False)
    torch.testing.assert_close(program.module()(images), backbone(images))


def test_images_are_normalised_as_the_network_expects() -> None:
    seen: list[Tensor] = []
    network = Network()
    backbone = PyramidBackbone(network, 8, mean=[127.0] * 3, std=[128.0] * 3)
    network.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.tensor([10.0, 127.0, 255.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    backbone(ImagePyramid([1.0])(image)[0])
    torch.testing.assert_close(seen[0], (image - 127) / 128, rtol=1e-5, atol=1e-5)


def test_efficientnet_lite_by_name() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = named_backbone("efficientnet_lite:0", 4, 16).eval()
    assert backbone.maps.channels[:3] == (24, 40, 112)
    assert backbone(torch.randn(1, 3, 50, 70)).shape == (1, 16, 13, 18)


def test_timm_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in, as timm loads torchvision, which may not fit the torch at hand."""
    timm = types.ModuleType("timm")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        network = Network()
        network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        return network

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    backbone = named_backbone("timm:tiny", 16, 7)
    assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, 7, 4, 4)
    assert backbone.scale.flatten().tolist() == pytest.approx([0.916, 0.896, 0.9], abs=1e-6)
    with pytest.raises(InputError, match=r"model.backbone: timm:nope: Unknown model \(nope\)"):
        named_backbone("timm:nope")


@pytest.mark.parametrize("name", ["resnet18", "keras:x", ":", ""])
def test_names_of_no_library(name: str) -> None:
    with pytest.raises(InputError, match="must be vgg, timm:NAME"):
        named_backbone(name)


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm cannot be imported .* pip install timm"):
        named_backbone("timm:resnet18")


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model"])
def test_weights_from_files(tmp_path: Path, wrapped: str) -> None:
    theirs, ours = Network(), PyramidBackbone(Network(), 8)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({wrapped: state, "epoch": 3} if wrapped else state, tmp_path / "w.pth")
    loaded = load_network_weights(ours.maps.network, tmp_path / "w.pth")
    assert not loaded.missing
    assert set(loaded.left) == {"head.weight", "head.bias"}
    assert str(loaded).endswith("tensors taken; 2 of the file left (head.weight, head.bias)")
    for name, value in ours.maps.network.state_dict().items():
        assert value.equal(theirs.state_dict()[name])


def test_weights_in_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(Network().state_dict(), tmp_path / "w.safetensors")
    assert read_state_dict(tmp_path / "w.safetensors").keys() == Network().state_dict().keys()
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="w.safetensors: cannot be read as weights"):
        read_state_dict(tmp_path / "w.safetensors")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(InputError, match="no such file of weights"):
        load_network_weights(Network(), path)
    for content, message in (
        ({"a": torch.zeros(2)}, "no layer of Network is in it"),
        ([1], "holds a list"),
        ({"a": 1}, "holds no tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            load_network_weights(Network(), path)
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"w.pth: cannot be read as weights"):
        load_network_weights(Network(), path)


def test_files_of_other_objects_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": Path("a")}, path)
    with pytest.raises(InputError, match="holds no tensors alone.* could run code and is not read"):
        read_state_dict(path)


class LastAxis(nn.Module):
    """Channels last, as in some transformers."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1)


def test_networks_of_one_size_or_without_maps() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(4 * 112 * 112, 2))
    with pytest.raises(InputError, match="Sequential cannot see an image of 128x128 pixels .* any"):
        FeatureMaps(fixed, [2])
    with pytest.raises(InputError, match="has no map of stride 4"):
        FeatureMaps(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Sequential(LastAxis())), [2, 4])
    maps = FeatureMaps(nn.Sequential(nn.Conv2d(3, 4, 2, 2), LastAxis()), [2])
    assert maps.names == {2: "0"}
