"""Gaussian filters in plain PyTorch: on the permutohedral lattice, and over all pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepcrf_ext.ops._tensor_checks import check_device, check_floating, check_tensor


class PermutohedralLattice:
    """The lattice around N points [N, d] (Adams, Baek and Davis 2010).

    Points are placed in float32, as the operator does it, so that both come to the same lattice.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        num_dims = features.shape[1]
        elevated = _elevate(features.detach().to(torch.float32))
        vertices, self.weights = _simplices(elevated)
        # All but the last coordinate, which is minus the sum of the others, name a point.
        keys = vertices[..., :num_dims].flatten(0, 1)
        numbers = _number(keys)
        self.vertices = numbers.view(vertices.shape[:2])  # [N, d + 1]
        self.num_points = int(numbers.max()) + 1
        points = keys.new_empty((self.num_points, num_dims))
        points[numbers] = keys
        self.neighbours = [_neighbours(points, axis) for axis in range(num_dims + 1)]
        self.scale = 1 / (1 + 2.0**-num_dims)

    def filter(self, values: Tensor) -> Tensor:
        """Filter values [N, C], differentiably in them and in the features."""
        filtered = self._splat_blur_slice(values)
        if self.features.requires_grad:
            # exp(-½ |f_i - f_j|²) where the squares have moved by so little that it is linear.
            squares = self._weighted_squares(values.detach())
            filtered = filtered - 0.5 * (squares - squares.detach())
        return filtered

    def _weighted_squares(self, values: Tensor) -> Tensor:
        """Σ_j k_ij |f_i - f_j|² v_j, by filters of the values' products with the features."""
        features = self.features.to(values.dtype)
        features = features - features.detach().mean(0)
        lengths = features.square().sum(1, keepdim=True)
        total = lengths * self._splat_blur_slice(values) + self._splat_blur_slice(lengths * values)
        for feature in features.split(1, 1):
            total = total - 2 * feature * self._splat_blur_slice(feature * values)
        return total

    def _splat_blur_slice(self, values: Tensor) -> Tensor:
        weights = self.weights.to(values.dtype)[..., None]
        splat = (weights * values[:, None]).flatten(0, 1)
        points = values.new_zeros((self.num_points + 1, values.shape[1]))
        points = points.index_add(0, self.vertices.flatten(), splat)
        for below, above in self.neighbours:
            blurred = points[:-1] + 0.5 * (points[below] + points[above])
            points = torch.cat([blurred, points[-1:]])
        return self.scale * (weights * points[self.vertices]).sum(1)


def _elevate(features: Tensor) -> Tensor:
    """[N, d] -> [N, d + 1] on the plane of zero sum, one feature unit the deviation of the blur."""
    num_dims = features.shape[1]
    deviation = torch.tensor(
        math.sqrt(2 / 3) * (num_dims + 1), dtype=torch.float32, device="cpu"
    ).item()
    elevated = []
    total = torch.zeros_like(features[:, 0])
    for j in range(num_dims, 0, -1):
        scaled = features[:, j - 1] * (1 / math.sqrt((j + 1) * j) * deviation)
        elevated.append(total - j * scaled)
        total = total + scaled
    return torch.stack([total, *reversed(elevated)], 1)


def _simplices(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The vertices [N, d + 1, d + 1] around every point, and its barycentric weights [N, d + 1]."""
    size = elevated.shape[1]
    down = (1 / torch.tensor(size, dtype=torch.float32, device="cpu")).item()
    rounded = (elevated * down).round()
    origin = rounded * size
    distance = elevated - origin
    # Ranks by descending distance; of equals, the earlier coordinate comes first.
    own, other = distance[:, :, None], distance[:, None, :]
    earlier = torch.ones(size, size, dtype=torch.bool, device=elevated.device).tril(-1)
    rank = ((own < other) | ((own == other) & earlier)).sum(2)
    rank = rank + rounded.sum(1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank >= size).long()
    rank = rank + size * wrap
    origin = origin + size * wrap

    ordered = torch.empty_like(elevated).scatter_(1, size - 1 - rank, (elevated - origin) * down)
    weights = ordered - ordered.roll(1, 1)
    weights[:, 0] = ordered[:, 0] + (1 - ordered[:, -1])
    colours = torch.arange(size, device=elevated.device)[:, None]  # of the vertices
    offsets = colours - size * (rank[:, None, :] > size - 1 - colours)
    return origin.long()[:, None, :] + offsets, weights


def _number(rows: Tensor) -> Tensor:
    """Number the distinct rows of integers [N, d] from 0: [N]."""
    numbers = torch.zeros_like(rows[:, 0])
    for column in rows.t():
        digits = column - column.min()
        joined = numbers * (digits.max() + 1) + digits
        numbers = joined.unique(return_inverse=True)[1]
    return numbers


def _neighbours(points: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The points one step below and above every point [M, d] along an axis; M where none is."""
    num_points, num_dims = points.shape
    step = torch.ones_like(points[0])
    if axis < num_dims:
        step[axis] = -num_dims
    sides = []
    for moved in (points - step, points + step):
        both = _number(torch.cat([points, moved]))
        where = torch.full((2 * num_points,), num_points, device=points.device)
        where[both[:num_points]] = torch.arange(num_points, device=points.device)
        sides.append(where[both[num_points:]])
    return sides[0], sides[1]


def permutohedral_filter(values: Tensor, features: Tensor) -> Tensor:
    """Approximate ``Σ_q exp(-|f_p - f_q|² / 2) v_q`` on the permutohedral lattice.

    Args:
        values: [N, C], floating point.
        features: [N, d], floating point, in standard deviations. Their gradient is that of the
            Gaussian, its sums taken on the lattice.

    Returns:
        [N, C] in the dtype of ``values``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    check_tensor("features", features, "N d", {})
    check_floating("features", features)
    check_tensor("values", values, "N C", {"N": features.shape[0]})
    check_floating("values", values)
    check_device("values", values.device, features.device, "the features")
    return PermutohedralLattice(features).filter(values)


def gaussian_filter(values: Tensor, features: Tensor) -> Tensor:
    """``Σ_q exp(-|f_p - f_q|² / 2) v_q`` over all N² pairs: values [N, C], features [N, d]."""
    features = features.to(values.dtype)
    squares = (features[:, None] - features).square().sum(2)
    return squares.mul(-0.5).exp() @ values
