"""Buffers whose values are known, and so no part of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FixedBuffers(nn.Module):
    """A module with buffers of fixed values, which checkpoints leave out.

    A model may be made without memory (``torch.device("meta")``) and filled later by a state, as
    large ones are. Buffers that are in no state get their values when one is loaded; on the meta
    device, as under ``assign=True``, they then move to the CPU. `reset_parameters` gives the values
    back after `to_empty`.

    Args:
        values: the value of each buffer by its name, on the CPU.
    """

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        self._fixed = values
        default = torch.empty(0).device
        for name, value in values.items():
            self.register_buffer(name, value.to(default, copy=True), persistent=False)
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
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta:
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    module.reset_parameters()
