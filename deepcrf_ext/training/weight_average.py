"""The moving average of a model's weights, which predicts better than where the steps ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_weights


class WeightAverage:
    """Exponential moving average of the weights and batch statistics of a model in training.

    After every step ``average = d · average + (1 - d) · weights``, where d is `decay`, and in the
    beginning (1 + n) / (10 + n) for n steps so far where that is less, so that little is left of
    where it started.

    Args:
        model: on its device; it is averaged as it trains.
        decay: at least 0 and below 1; 0 keeps no average: the model's weights stand for it.
    """

    def __init__(self, model: DeepCRF, decay: float) -> None:
        self.model, self.decay = model, decay
        self.restart()

    def restart(self) -> None:
        """Begins anew from the weights that the model has."""
        self.steps = 0
        self._average = self._copy() if self.decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point():
                self._average[name].lerp_(weight, 1 - decay)
            else:  # a count of batches
                self._average[name].copy_(weight)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the averaged weights, afterwards its own again."""
        if not self.decay:
            yield
            return
        own = self._copy()
        self.model.load_state_dict(self._average)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the averaged weights as its "model", what training needs beside."""
        weights = self.model.state_dict()
        if not self.decay:
            return {"model": weights}
        return {"model": self._average, "live": {"model": weights, "steps": self.steps}}

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes to where `state` was read, which the file `path` holds.

        Raises InputError where its weights are not those of the model.
        """
        load_weights(self.model, state, path)
        self.restart()
        if "live" in state:
            self.steps = state["live"]["steps"]
            load_weights(self.model, state["live"], path)

    def _copy(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}
