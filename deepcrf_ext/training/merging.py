"""One model of potentials that were trained apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deepcrf_ext.config import TrainConfig, to_dict
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_weights,
    read_config,
)
from deepcrf_ext.training.optimiser import make_optimiser
from deepcrf_ext.training.stages import plan_stages


class _Run:
    """A checkpoint, read into a model and its optimiser."""

    def __init__(self, path: Path) -> None:
        self.path = find_checkpoint(path)
        self.state = load_checkpoint(self.path)
        self.config = read_config(self.state, self.path)
        if self.config.model.share_blocks:
            raise InputError(f"{self.path}: its potentials share blocks, and cannot be merged")
        self.initialised: list[str] = self.state.get("initialised", [])
        self.model, self.optimiser = _build(
            self.config, len(self.state["classes"]), self.initialised
        )
        load_weights(self.model, self.state, self.path)
        try:
            self.optimiser.load_state_dict(self.state["optimiser"])
        except (KeyError, ValueError) as error:  # none, or its groups are others
            raise InputError(f"{self.path} is of a version whose runs cannot be merged") from error

    def must_match(self, other: _Run) -> None:
        """Raises InputError naming what keeps two runs from being merged."""
        for what, of in (
            ("classes", lambda run: run.state["classes"]),
            ("model settings", lambda run: replace(run.config.model, potentials=None)),
            ("steps", lambda run: run.state["step"]),
            ("averages of the weights (ema)", lambda run: run.config.ema),
        ):
            if of(self) != of(other):
                raise InputError(
                    f"{self.path} and {other.path} have other {what}: {of(self)} and {of(other)}"
                )


def _build(
    config: TrainConfig, num_classes: int, initialised: Sequence[str]
) -> tuple[DeepCRF, Optimizer]:
    model = DeepCRF(config.model, num_classes)
    return model, make_optimiser(model, config.optim, initialised)


def _parameters(model: DeepCRF, potential: str) -> list[Tensor]:
    """The parameters and buffers of a potential's network, in an order that all models share."""
    network = model.potentials[potential]
    return [*network.parameters(), *network.buffers()]


@torch.no_grad()
def merge(paths: Sequence[Path]) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings and the state, as of a checkpoint, of all potentials together.

    Raises InputError for a file that cannot be read, and for runs that do not fit together.
    """
    runs = [_Run(path) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        first.must_match(run)
    sources: dict[str, _Run] = {}
    for run in runs:
        for name in run.model.potential_names:
            sources.setdefault(name, run)
    names = tuple(name for name in first.config.model.all_potentials() if name in sources)
    model_config = replace(first.config.model, potentials=names)
    config = replace(first.config, model=model_config, warm_start=0.0)  # all relations have started
    initialised = sorted(
        name
        for potential, run in sources.items()
        for name in run.initialised
        if name.startswith(f"potentials.{potential}.")
    )
    model, optimiser = _build(config, len(first.state["classes"]), initialised)
    loss_sums: dict[str, float] = {}
    for name, run in sources.items():
        pairs = zip(_parameters(model, name), _parameters(run.model, name), strict=True)
        for target, source in pairs:
            target.copy_(source)
            if source in run.optimiser.state:
                optimiser.state[target] = run.optimiser.state[source]
        if name in run.state["progress"]["loss_sums"]:
            loss_sums[name] = run.state["progress"]["loss_sums"][name]
    weights = model.state_dict()
    averaged: dict[str, Any] = {}
    if config.ema:  # these are the averages; what trains on is beside them (`WeightAverage`)
        lives = {name: run.state["live"] for name, run in sources.items()}
        averaged["live"] = {
            "model": {key: lives[key.split(".")[1]]["model"][key] for key in weights},
            "steps": min(live["steps"] for live in lives.values()),
        }
    epoch = first.state["epoch"]
    begun = [stage.first_epoch < epoch for stage in plan_stages(config, model)]
    state = {
        **first.state,
        "config": to_dict(config),
        "model": weights,
        **averaged,
        "optimiser": optimiser.state_dict(),
        "initialised": initialised,
        "progress": {
            **first.state["progress"],
            "stage": max(0, sum(begun) - 1),
            "best": -1.0,
            "loss_sums": loss_sums,
        },
    }
    return config, state
