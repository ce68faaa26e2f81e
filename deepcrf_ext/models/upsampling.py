"""Parts of bilinearly upsampled maps, without the rest of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def upsample_part(planes: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """`interpolate(planes, size, mode="bilinear")[:, rows, columns]`: [K, h, w] -> [K, r, c]."""
    if (rows.stop - rows.start, columns.stop - columns.start) == size:
        return functional.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    partial = _along(planes, 1, size[0], rows)
    return _along(partial, 2, size[1], columns)


def _along(planes: Tensor, axis: int, size: int, part: slice) -> Tensor:
    count = planes.shape[axis]
    pixels = torch.arange(part.start, part.stop, dtype=torch.float32, device=planes.device)
    source = ((pixels + 0.5) * (count / size) - 0.5).clamp(min=0)
    low = source.long().clamp(max=count - 1)
    high = (low + 1).clamp(max=count - 1)
    weight = (source - low).to(planes.dtype)
    weight = weight.view(*[-1 if i == axis else 1 for i in range(planes.dim())])
    below, above = planes.index_select(axis, low), planes.index_select(axis, high)
    return torch.lerp(below, above, weight, out=below)
