"""Learning rates: of new and of initialised layers, and over a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from vgg_weights import vgg_state

from deepcrf_ext.config import OptimConfig, preset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg_init import initialise_from_vgg16
from deepcrf_ext.training.optimiser import (
    learning_rate_factor,
    make_optimiser,
    set_learning_rate,
)


def test_learning_rates_of_new_and_of_initialised_layers(tmp_path: Path) -> None:
    config = preset("paper").model
    config.widths, config.head_widths = (2, 3, 4, 5, 6), (7, 4)
    config.potentials = ("unary", "surrounding")
    model = DeepCRF(config, 3)
    optim = OptimConfig(lr=1e-3, lr_initialised=1e-4)
    torch.save(vgg_state(), tmp_path / "vgg16.pth")
    names = set(initialise_from_vgg16(model, str(tmp_path / "vgg16.pth")).taken)
    optimiser = make_optimiser(model, optim, names)
    new, initialised, logs = optimiser.param_groups
    assert [group["lr"] for group in optimiser.param_groups] == [1e-3, 1e-4, 1e-3]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [5e-4, 5e-4, 0]
    assert [group["momentum"] for group in optimiser.param_groups] == [0.9] * 3
    assert logs["params"] == [model.potentials["surrounding"].log_weight]
    slow = {id(p) for p in initialised["params"]}
    for network in model.potentials.values():
        features = network.features
        vgg = {id(p) for p in [*features.blocks.parameters(), *features.head[0].parameters()]}
        assert vgg <= slow
        assert not slow & ({id(p) for p in network.parameters()} - vgg)
    assert len(slow) + len(new["params"]) + 1 == len(list(model.parameters()))
    for factor in (0.5, 0.25):
        set_learning_rate(optimiser, factor)
        rates = [group["lr"] for group in optimiser.param_groups]
        assert rates == pytest.approx([factor * rate for rate in (1e-3, 1e-4, 1e-3)])


def test_schedules() -> None:
    exponential = OptimConfig(schedule="exponential", decay=0.97)
    for step in range(20):
        factor = learning_rate_factor(exponential, step / 5, epochs=4)
        assert factor == pytest.approx(0.97 ** (step // 5))
    poly = OptimConfig(schedule="poly")
    for step in range(21):
        factor = learning_rate_factor(poly, step / 5, epochs=4)
        assert factor == pytest.approx((1 - step / 20) ** 0.9)
    cosine = OptimConfig(schedule="cosine", warm_up=2)
    factors = [learning_rate_factor(cosine, epoch, epochs=8) for epoch in range(9)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[1] == pytest.approx(0.505 * (1 + np.cos(np.pi / 8)) / 2)
    assert factors[4] == pytest.approx(0.5)
    assert factors[8] == pytest.approx(0)


def test_adamw_moves_the_weights_of_relations_ten_times_as_fast() -> None:
    config = preset("small").model
    config.potentials = ("unary", "surrounding")
    model = DeepCRF(config, 3)
    optim = OptimConfig("adamw", lr=1e-3, lr_initialised=1e-4, momentum=0.8, weight_decay=0.01)
    initialised = {
        name for name, _ in model.potentials["unary"].named_parameters("potentials.unary")
    }
    optimiser = make_optimiser(model, optim, initialised)
    assert isinstance(optimiser, torch.optim.AdamW)
    rates = [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups]
    assert rates == [(1e-3, 0.01), (1e-4, 0.01), (1e-2, 0.0)]
    assert all(group["betas"] == (0.8, 0.999) for group in optimiser.param_groups)
    assert optimiser.param_groups[2]["params"] == [model.potentials["surrounding"].log_weight]
