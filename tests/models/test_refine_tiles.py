"""The dense CRF in tiles gives what it gives at once, without seams."""

from __future__ import annotations

import pytest
import torch
from dense_problems import scene
from torch.nn import functional

from deepcrf_ext import DenseCRFParams, dense_crf
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import refine_tiles
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.models.refine_tiles import BLEND, Plan, bytes_needed, refine_labels, refine_parts
from deepcrf_ext.models.upsampling import upsample_part

CPU = torch.device("cpu")
PARAMS = DenseCRFParams(bilateral_sxy=(20, 16))


@pytest.mark.parametrize(("height", "width"), [(300, 410), (140, 500), (500, 140)])
def test_equals_the_whole(height: int, width: int) -> None:
    unary, image = scene(height, width, 4)
    settings = DenseCRFSettings(PARAMS, 5)
    whole = dense_crf(unary, image, PARAMS, 5)[0]
    memory = bytes_needed(height * width, 4) // 3
    plan = Plan.of((height, width), 4, PARAMS, memory)
    assert len(plan.rows) * len(plan.columns) > 1

    def energies(rows: slice, columns: slice) -> torch.Tensor:
        return unary[0, :, rows, columns]

    tiled = torch.full_like(whole, torch.nan)
    for part in refine_parts(energies, image[0], 4, settings, CPU, memory):
        tiled[:, part[0], part[1]] = part[2].float()
    torch.testing.assert_close(tiled.sum(0), torch.ones(height, width), atol=2e-3, rtol=0)
    assert float((tiled - whole).abs().max()) < 0.02
    assert float((tiled.argmax(0) == whole.argmax(0)).double().mean()) > 0.9995
    labels = refine_labels(energies, image[0], 4, settings, CPU, memory)
    assert (labels == tiled.argmax(0)).all()


def test_an_image_that_fits_is_done_at_once() -> None:
    unary, image = scene(150, 140, 4)
    fits = bytes_needed(150 * 140, 4)
    for memory, count in ((fits, 1), (fits - 1, 2)):
        parts = refine_parts(
            lambda r, c: unary[0, :, r, c], image[0], 4, DenseCRFSettings(PARAMS, 5), CPU, memory
        )
        found = list(parts)
        assert len(found) == count
        if count == 1:
            assert found[0][:2] == (slice(0, 150), slice(0, 140))
            assert torch.equal(found[0][2], dense_crf(unary, image, PARAMS, 5)[0])


@pytest.mark.parametrize("num_classes", [2, 21, 150])
@pytest.mark.parametrize("size", [(13000, 14000), (400, 90000), (90000, 300), (50, 50)])
def test_a_plan_keeps_to_the_memory(size: tuple[int, int], num_classes: int) -> None:
    memory = 2 * 10**9
    plan = Plan.of(size, num_classes, DenseCRFParams(), memory)
    rows, columns = plan.rows, plan.columns
    for axis, length in ((rows, size[0]), (columns, size[1])):
        assert axis[0].start == axis[0].seen.start == 0
        assert axis[-1].stop == axis[-1].seen.stop == length
        total = torch.zeros(length)
        for span in axis:
            total[span.start : span.stop] += span.weights(length, CPU)
            assert span.seen.start <= span.start < span.stop <= span.seen.stop
        torch.testing.assert_close(total, torch.ones(length))
    pixels = max(r.seen.stop - r.seen.start for r in rows) * max(
        c.seen.stop - c.seen.start for c in columns
    )
    bands = rows if plan.by_rows else columns
    band = 2 * num_classes * min(size) * max(b.stop - b.start for b in bands)
    assert bytes_needed(pixels, num_classes) + band <= 1.05 * memory


def test_a_band_across_a_huge_image_keeps_to_the_memory() -> None:
    plan = Plan.of((40_000, 41_000), 21, DenseCRFParams(), 2 * 10**9)
    assert 2 * 21 * 40_000 * max(band.stop - band.start for band in plan.columns) <= 1.05e9


def test_tiles_see_as_far_as_the_kernels_reach() -> None:
    rows = Plan.of((4000, 4000), 2, DenseCRFParams(), 4 * 10**8).rows
    assert rows[1].start - rows[1].seen.start == 240
    assert rows[0].stop - rows[1].start == 2 * BLEND


def test_a_kernel_too_narrow_is_named() -> None:
    unary, image = scene(200, 200, 2)
    settings = DenseCRFSettings(DenseCRFParams(bilateral_srgb=1e-4), 1)
    with pytest.raises(InputError, match="dense CRF"):
        refine_labels(lambda r, c: unary[0, :, r, c], image[0], 2, settings, CPU, 10**6)


@pytest.mark.parametrize("size", [(83, 101), (5, 7), (400, 3)])
def test_parts_of_upsampled_maps(size: tuple[int, int]) -> None:
    planes = torch.rand(3, 13, 17, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    rows, columns = slice(size[0] // 3, size[0]), slice(0, size[1] // 2 + 1)
    part = upsample_part(planes, size, rows, columns)
    torch.testing.assert_close(part, whole[:, rows, columns])
    assert refine_tiles.MEMORY == 2 * 10**9
