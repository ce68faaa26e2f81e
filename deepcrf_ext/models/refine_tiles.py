"""The dense CRF over images of any size: at once, or in tiles that overlap where it takes too much
memory.

Every tile sees some pixels around it, as far as the kernels reach, and lies on the lattice of the
whole image, so that its marginals are nearly those of the whole. Where tiles meet they are blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepcrf_ext.errors import InputError
from deepcrf_ext.models.refine import DenseCRFSettings, build_lattices
from deepcrf_ext.models.upsampling import upsample_part
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.ops.dense_crf_lattices import (
    DenseCRFLattices,
    bilateral_features,
    gaussian_features,
)
from deepcrf_ext.ops.dense_crf_params import DenseCRFParams, Width, unary_from_probabilities
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice

Energies = Callable[[slice, slice], Tensor]
"""(rows, columns) -> unary energies of these pixels, float32 [K, rows, columns], on the device."""

MEMORY = 2 * 10**9
"""Bytes for what is computed at a time where nothing else is said."""
BLEND = 32
"""Pixels on either side of a border between tiles that both share in."""
_REACH = 3.0  # standard deviations of the kernels that a tile sees around it
_TILE_SHARE = 0.5  # of the memory; the rest holds the row of tiles that is being blended


def bytes_needed(num_pixels: int, num_classes: int) -> int:
    """About what a dense CRF takes beside the image, its energies included."""
    return num_pixels * (120 + 16 * num_classes)


def energies_of(marginals: Tensor, size: tuple[int, int]) -> Energies:
    """The unary energies that `refine` makes of marginals [K, h, w], for an image of (H, W)."""
    return lambda rows, columns: unary_from_probabilities(
        upsample_part(marginals, size, rows, columns)
    )


@dataclass(frozen=True)
class Span:
    """Part of an axis: the pixels that a tile gives, [start, stop), and those it sees."""

    start: int
    stop: int
    seen: slice

    def weights(self, size: int, device: torch.device) -> Tensor:
        """How much of each of its pixels is this tile's: less where the next one begins."""
        weights = torch.ones(self.stop - self.start, device=device)
        ramp = (torch.arange(2 * BLEND, device=device) + 0.5) / (2 * BLEND)
        if self.start > 0:
            weights[: 2 * BLEND] = ramp
        if self.stop < size:
            weights[-2 * BLEND :] = ramp.flip(0)
        return weights

    @property
    def given(self) -> slice:
        """Its pixels within those it sees."""
        return slice(self.start - self.seen.start, self.stop - self.seen.start)


def spans(size: int, core: int, reach: int) -> list[Span]:
    """An axis in spans of at most `core` pixels, each wider by BLEND where another is next."""
    count = max(1, math.ceil(size / max(core, 4 * BLEND)))
    borders = [size * index // count for index in range(count + 1)]
    found = []
    for first, last in pairwise(borders):
        start, stop = max(0, first - BLEND), min(size, last + BLEND)
        start, stop = (0 if first == 0 else start), (size if last == size else stop)
        found.append(Span(start, stop, slice(max(0, start - reach), min(size, stop + reach))))
    return found


@dataclass(frozen=True)
class Plan:
    """Tiles in rows and columns. They run in bands across the image, which hold the results of
    tiles side by side until they are blended: rows of tiles, or columns where the image is wide."""

    rows: list[Span]
    columns: list[Span]
    by_rows: bool

    @classmethod
    def of(
        cls, size: tuple[int, int], num_classes: int, params: DenseCRFParams, memory: int
    ) -> Plan:
        """One in which a tile and a band fit in the memory."""
        side = math.isqrt(int(_TILE_SHARE * memory) // bytes_needed(1, num_classes))
        widest = max(_largest(params.gaussian_sxy), _largest(params.bilateral_sxy))
        reach = min(math.ceil(_REACH * widest), side // 3)
        core = side - 2 * (reach + BLEND)
        by_rows = size[1] <= size[0]
        in_band = int((1 - _TILE_SHARE) * memory) // (2 * num_classes * min(size)) - 2 * BLEND
        across, along = spans(min(size), core, reach), spans(max(size), min(core, in_band), reach)
        return cls(along, across, True) if by_rows else cls(across, along, False)


def refine_labels(
    energies: Energies,
    image: Tensor,
    num_classes: int,
    settings: DenseCRFSettings,
    device: torch.device,
    memory: int,
) -> Tensor:
    """The likeliest label of every pixel by `refine_parts`, uint8 [H, W] on the CPU."""
    labels = torch.empty(image.shape[1:], dtype=torch.uint8, device="cpu")
    parts = refine_parts(energies, image, num_classes, settings, device, memory)
    for rows, columns, marginals in parts:
        labels[rows, columns] = marginals.argmax(0)
    return labels


def refine_parts(
    energies: Energies,
    image: Tensor,
    num_classes: int,
    settings: DenseCRFSettings,
    device: torch.device,
    memory: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Marginals of pixels by a dense CRF: all at once where that fits in the memory, else in tiles,
    one part of the image after another.

    Args:
        energies: gives the unary energies of any part of the image.
        image: RGB in 0..255, [3, H, W].
        num_classes: K.
        settings: of the dense CRF.
        device: where it runs.
        memory: bytes to use, about, beside the image.

    Yields:
        rows, columns, marginals [K, rows, columns]. Each pixel is in one part. The whole is float32
        on the device, parts are float16 on the CPU.

    Raises:
        InputError: a kernel is too narrow for the image.
    """
    height, width = image.shape[1:]
    if bytes_needed(height * width, num_classes) <= memory:
        rows, columns = slice(0, height), slice(0, width)
        yield rows, columns, _whole(energies(rows, columns), image.to(device), settings)
        return
    tiles = Plan.of((height, width), num_classes, settings.params, memory)
    bands, others = (tiles.rows, tiles.columns) if tiles.by_rows else (tiles.columns, tiles.rows)
    axis = 1 if tiles.by_rows else 2
    shared: Tensor | None = None  # the end of the band before, which is blended with this one
    for band in bands:
        shape = [num_classes, height, width]
        shape[axis] = band.stop - band.start
        total = torch.zeros(shape, dtype=torch.float16, device="cpu")
        if shared is not None:
            total.narrow(axis, 0, 2 * BLEND).copy_(shared)
        for other in others:
            row, column = (band, other) if tiles.by_rows else (other, band)
            marginals = _tile(energies, image, settings, device, row, column)
            weights = row.weights(height, device)[:, None] * column.weights(width, device)
            inner = total.narrow(3 - axis, other.start, other.stop - other.start)
            inner += (marginals * weights).half().cpu()
        done = shape[axis] - (0 if band is bands[-1] else 2 * BLEND)
        shared = total.narrow(axis, done, shape[axis] - done).clone()
        along, whole = slice(band.start, band.start + done), slice(0, None)
        rows, columns = (along, whole) if tiles.by_rows else (whole, along)
        yield rows, columns, total.narrow(axis, 0, done)


@torch.inference_mode()
def _whole(unary: Tensor, image: Tensor, settings: DenseCRFSettings) -> Tensor:
    """The marginals of all of an image, [K, H, W]."""
    lattices = build_lattices(image[None], settings.params)
    return dense_crf(unary[None], image[None], settings.params, settings.iterations, lattices)[0]


@torch.inference_mode()
def _tile(
    energies: Energies,
    image: Tensor,
    settings: DenseCRFSettings,
    device: torch.device,
    row: Span,
    column: Span,
) -> Tensor:
    """The marginals that a tile gives, [K, rows, columns]."""
    pixels = image[:, row.seen, column.seen].to(device)[None]
    lattices = _lattices(pixels, settings.params, (row.seen.start, column.seen.start))
    unary = energies(row.seen, column.seen)[None]
    refined = dense_crf(unary, pixels, settings.params, settings.iterations, lattices)
    return refined[0, :, row.given, column.given]


def _lattices(pixels: Tensor, params: DenseCRFParams, origin: tuple[int, int]) -> DenseCRFLattices:
    """The lattices of a tile [1, 3, h, w] where it lies in the image."""
    positions = gaussian_features(pixels.shape[2:], params.gaussian_sxy, pixels.device)
    colours = bilateral_features(pixels[0], params.bilateral_sxy, params.bilateral_srgb)
    positions += _shift(origin, params.gaussian_sxy, pixels.device)
    colours[:2] += _shift(origin, params.bilateral_sxy, pixels.device)
    try:
        gaussian, bilateral = map(PermutohedralLattice.from_planes, (positions, colours))
    except ValueError as error:
        raise InputError(f"dense CRF: {error}") from error
    widths = params.gaussian_sxy, params.bilateral_sxy, params.bilateral_srgb
    return DenseCRFLattices(pixels.shape, widths, gaussian, (bilateral,))


def _shift(origin: tuple[int, int], width: Width, device: torch.device) -> Tensor:
    """The first pixel of a tile, (x, y) over the width, [2, 1]."""
    both = torch.as_tensor(width, dtype=torch.float32, device="cpu").expand(2)  # rows, columns
    pixel = torch.tensor(origin, dtype=torch.float32, device="cpu")
    return (pixel / both).flip(0)[:, None].to(device)


def _largest(width: Width) -> float:
    return float(torch.as_tensor(width, device="cpu").max())
