"""Buffers whose values are known, and so no part of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FixedBuffers(nn.Module):
    """A module with buffers of fixed values, which checkpoints leave out.

    A model may be made without memory (``torch.device("meta")``) and filled later by its state, as
    large ones are: the buffers are made on a device all the same, and after `to_empty` get their
    values when a state is loaded, or by `reset_parameters`.

    Args:
        values: the value of each buffer by its name.
    """

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        default = torch.empty(0).device
        self._fixed = {name: value.cpu() for name, value in values.items()}
        for name, value in self._fixed.items():
            device = "cpu" if default.type == "meta" else default
            self.register_buffer(name, value.to(device, copy=True), persistent=False)
        self.register_load_state_dict_post_hook(_after_loading)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives the buffers their values."""
        for name, value in self._fixed.items():
            getattr(self, name).copy_(value)


def channel_values(values: Sequence[float]) -> Tensor:
    """One number for each channel of images, [C, 1, 1], on the CPU."""
    return torch.tensor(values, device="cpu").view(-1, 1, 1)


def _after_loading(module: nn.Module, _: Any) -> None:
    assert isinstance(module, FixedBuffers)
    module.reset_parameters()
