"""Batch normalisation in two processes: as in one that has all of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_processes
from torch import nn

from deepcrf_ext.parallel.batch_norm import BatchNorm, share_batches
from deepcrf_ext.parallel.world import World, join

C = 5
SIZES = ((3, 4, 6), (1, 7, 2))  # images, height and width of the maps of each process


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    """The maps of each process, with means far from 0 and from each other's; channels last."""
    generator = torch.Generator().manual_seed(0)
    offset = torch.arange(C).view(C, 1, 1) * 20.0
    return [
        (torch.randn(b, C, h, w, generator=generator) * (1 + 2 * rank) + offset + rank)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for rank, (b, h, w) in enumerate(SIZES)
    ]


def as_one(parts: list[torch.Tensor]) -> torch.Tensor:
    """All pixels of maps of several sizes, [1, C, 1, pixels]."""
    return torch.cat([part.permute(1, 0, 2, 3).flatten(1) for part in parts], 1)[None, :, None]


def make_norm(kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    norm = kind(C)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, C))
        norm.bias.copy_(torch.linspace(-1, 1, C))
    return norm


def normalise_in(rank: int, dtype: torch.dtype, kind: type[nn.BatchNorm2d] = BatchNorm) -> int:
    """Two steps of this process's part, compared with the part of the whole's."""
    whole, part = make_norm(nn.BatchNorm2d), make_norm(kind)
    parts = batches(dtype)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    with join("cpu") as world:
        assert share_batches(part, world) == []
        for _ in range(2):
            maps = [p.clone().requires_grad_() for p in parts]
            pull = [torch.cos(p.detach().float() * 3).to(dtype) for p in parts]
            expected = whole(as_one(maps))
            (expected * as_one(pull)).sum().backward()
            own = parts[rank].clone().requires_grad_()
            normal = part(own)
            (normal * pull[rank]).sum().backward()
            assert normal.dtype == own.grad.dtype == dtype
            first = 0 if rank == 0 else parts[0].numel() // C
            pixels = slice(first, first + own.numel() // C)
            torch.testing.assert_close(as_one([normal]), expected[..., pixels], **close)
            torch.testing.assert_close(own.grad, maps[rank].grad, **close)
        for name in ("weight", "bias"):  # each process has its share, and training adds them up
            total = world.sum(getattr(part, name).grad)
            torch.testing.assert_close(total, getattr(whole, name).grad, rtol=1e-3, atol=1e-2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(part.state_dict()[name], value)
    part.eval()
    whole.eval()
    torch.testing.assert_close(part(parts[rank]), whole(parts[rank]), **close)
    return 0


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, BatchNorm),
        (torch.bfloat16, BatchNorm),
        (torch.float32, nn.BatchNorm2d),  # of a library's network
    ],
)
def test_statistics_and_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, dtype: torch.dtype, kind: type[nn.BatchNorm2d]
) -> None:
    codes = run_processes(normalise_in, [dtype, kind], tmp_path)
    assert codes == [0, 0], [path.read_text() for path in tmp_path.iterdir()]


def test_alone_it_is_torch_s(tmp_path: Path) -> None:
    own, torchs = make_norm(BatchNorm), make_norm(nn.BatchNorm2d)
    maps = batches(torch.float32)[0]
    assert torch.equal(own(maps), torchs(maps))
    assert own.state_dict().keys() == torchs.state_dict().keys()


class Twins(World):
    """Two processes with the same maps, of which this is one."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_devices_and_layouts(device: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    whole, part = (make_norm(kind).to(device) for kind in (nn.BatchNorm2d, BatchNorm))
    share_batches(part, Twins(0, 2))
    maps = batches(dtype)[0].to(device).contiguous(memory_format=layout)
    pull = torch.cos(maps.float() * 3).to(dtype)
    own, both = maps.clone().requires_grad_(), torch.cat([maps, maps]).requires_grad_()
    (part(own) * pull).sum().backward()
    (whole(both) * torch.cat([pull, pull])).sum().backward()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(own.grad, both.grad[: len(maps)], rtol=limit, atol=limit)
    torch.testing.assert_close(2 * part.weight.grad, whole.weight.grad, rtol=1e-2, atol=1e-2)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's, whose class is known by this name."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(maps)))


def test_layers_of_libraries_are_shared_in_place() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(C),
        BatchNormAct2d(C),
        nn.Sequential(nn.BatchNorm2d(C, track_running_stats=False)),
        nn.SyncBatchNorm(C),
        nn.GroupNorm(1, C),
    )
    before = dict(network.state_dict(keep_vars=True))
    maps = batches(torch.float32)[0]
    expected = network[1](network[0](torch.cat([maps, maps])))
    network[0].reset_running_stats(), network[1].reset_running_stats()
    assert share_batches(network, Twins(0, 2)) == ["2.0"]
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is value for name, value in before.items())
    assert list(after) == list(before)
    torch.testing.assert_close(network[1](network[0](maps)), expected[: len(maps)])
    assert isinstance(network[1].act, nn.SiLU)
