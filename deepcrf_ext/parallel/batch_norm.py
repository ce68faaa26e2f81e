"""Batch normalisation by the statistics of the whole batch, also where processes share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from deepcrf_ext.errors import InputError
from deepcrf_ext.parallel.world import ALONE, World


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that normalises by the maps of all processes of `world` together.

    Each of them must then run it, forward and backward, in the same order. `torch.nn.SyncBatchNorm`
    does the same on CUDA and refuses CPU tensors.

    Attributes:
        world: the processes that share a batch (default: this one alone); see `share_batches`.
    """

    world: World = ALONE

    def forward(self, maps: Tensor) -> Tensor:
        """Normalises [B, C, h, w]; B, h and w may differ between processes.

        Raises LostProcessError when another process is gone, InputError in training on one value a
        channel, whose variance is nothing.
        """
        if self.training and self.world.size * maps[:, 0].numel() < 2:
            raise InputError(
                f"batch normalisation: got one image with a map of {maps.shape[2]} x "
                f"{maps.shape[3]}, must be at least 2 values a channel; raise batch_size or "
                "data.crop, or set model.batch_norm to false"
            )
        if not self.training or self.world.size == 1:
            return super().forward(maps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        mean, variance, total = _statistics(maps, self.world)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_((variance * total / (total - 1)).float(), self.momentum)
            self.num_batches_tracked += 1
        normal: Tensor = _Normalise.apply(
            maps, self.weight, self.bias, mean, variance, total, self.eps, self.world
        )
        return normal


class BatchNormAct(BatchNorm):
    """The same followed by dropout and an activation, as timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, maps: Tensor) -> Tensor:
        """Normalises [B, C, h, w] and activates."""
        active: Tensor = self.act(self.drop(super().forward(maps)))
        return active


_SHARED = {"BatchNorm2d": BatchNorm, "BatchNormAct2d": BatchNormAct}
"""What stands for layers of torch and of timm, by the names of their classes."""


def share_batches(model: nn.Module, world: World) -> list[str]:
    """Lets the batch normalisation of a model take its statistics from all processes.

    Layers of torch and timm become a `BatchNorm` in place, with the tensors and names that they
    have. Returns the names of layers of other kinds, which keep to the maps of their own process.
    """
    alone = []
    for name, layer in model.named_modules():
        if not isinstance(layer, _BatchNorm) or isinstance(layer, nn.SyncBatchNorm):
            continue
        if not isinstance(layer, BatchNorm):
            shared = _SHARED.get(type(layer).__name__)
            usual = layer.affine and layer.track_running_stats and layer.momentum is not None
            if shared is None or not usual:
                alone.append(name)
                continue
            layer.__class__ = shared
            assert isinstance(layer, BatchNorm)
        layer.world = world
    return alone


@torch.no_grad()
def _statistics(maps: Tensor, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (biased) of each channel, float32 [C], and the values a channel, float64.

    Of the maps [B, C, h, w] of all processes together.
    """
    channels = maps.shape[1]
    count = maps.numel() // channels
    # Ten times as fast as torch.var_mean on a CPU, in float32 if the running statistics are.
    running = torch.zeros(2, channels, device=maps.device)
    mean, variance = torch.batch_norm_update_stats(maps, running[0], running[1], 0.0)
    # In float64, where the difference of squares below loses nothing that float32 would show.
    moments = torch.stack([torch.ones_like(mean), mean, variance + mean.double() ** 2]) * count
    total, first, second = world.sum(moments)
    mean = first / total
    variance = (second / total - mean**2).clamp(min=0)
    return mean.float(), variance.float(), total


class _Normalise(torch.autograd.Function):
    """Normalises by statistics that depend on the maps of all processes.

    maps [B, C, h, w]; weight, bias, mean, variance float32 [C]; total float64 [C].
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        total: Tensor,
        eps: float,
        world: World,
    ) -> Tensor:
        ctx.save_for_backward(maps, weight, mean, variance, total)
        ctx.eps, ctx.world = eps, world
        return functional.batch_norm(maps, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, variance, total = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        # With fixed statistics: scale · gradient, Σ gradient · normalised maps, Σ gradient. CUDA
        # wants the saved statistics of training even so.
        statistics = (mean, variance, mean, inverse)
        own, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            *gradients, maps, weight, *statistics, False, ctx.eps, [True] * 3
        )
        # Less its mean, and less its share along the normalised maps, over all processes.
        sums = ctx.world.sum(torch.stack([weight_gradient, bias_gradient]).double())
        along, level = (sums / total).float()
        slope = -weight * inverse**2 * along
        offset = -weight * inverse * level - slope * mean
        # slope · maps + offset, by a kernel that computes bfloat16 in float32.
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        correction = functional.batch_norm(maps, zeros, ones, slope, offset, eps=0.0)
        return own.add_(correction), weight_gradient, bias_gradient, *[None] * 5
