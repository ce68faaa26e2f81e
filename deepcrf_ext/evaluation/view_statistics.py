"""Batch normalisation by statistics of the image that is predicted.

Where images look other than those of the training, their means and deviations are other too, and
running statistics normalise them badly (Schneider et al., "Improving robustness against common
corruptions by covariate shift adaptation", NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def view_statistics(model: nn.Module, share: float) -> Iterator[None]:
    """Within it, batch normalisation of a model in eval mode takes the means and variances
    (1 - share) · running + share · those of its input. Afterwards all is as before.

    share: 0 to 1; 0 changes nothing.
    """
    if share == 0:
        yield
        return
    running: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def mix(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        if module.training or module.running_mean is None or module.running_var is None:
            return
        # Many times as fast as torch.var_mean on a CPU.
        unused = torch.zeros_like(module.running_mean)
        mean, variance = torch.batch_norm_update_stats(inputs[0], unused, unused.clone(), 0.0)
        running[module] = module.running_mean, module.running_var
        module.running_mean = module.running_mean.lerp(mean, share)
        module.running_var = module.running_var.lerp(variance, share)

    def restore(module: nn.Module, *_: Any) -> None:
        assert isinstance(module, _BatchNorm)
        if module in running:
            module.running_mean, module.running_var = running.pop(module)

    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(mix) for layer in layers]
    handles += [layer.register_forward_hook(restore) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in list(running):
            restore(layer)
