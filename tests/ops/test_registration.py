"""Derivatives that the operators do not have are refused, not computed wrongly."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from problems import FACTORED, OPERATORS, grid_problem, used_tensors
from torch import Tensor
from torch.autograd import forward_ad

import deepcrf_ext as dc
from deepcrf_ext.ops._registration import _spelt

IMAGE = (torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) * 41 % 256).float()


def of_potential(operator: str, scale: Tensor) -> Tensor:
    """An operator over pairwise potentials as a function of its source features' scale."""
    problem = grid_problem(4, 5, FACTORED, 3, 4)
    name = next(name for name in used_tensors(operator, problem) if name.startswith("source"))
    tensors = {**problem.tensors, name: problem.tensors[name] * scale}
    return OPERATORS[operator](dc, problem.with_tensors(tensors))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(of_potential, name) for name in OPERATORS},
    "dense_crf": lambda scale: dc.dense_crf(scale * IMAGE[:, :2] / 256, IMAGE, iterations=2),
    "permutohedral_filter": lambda scale: dc.permutohedral_filter(scale * IMAGE[0, 0], IMAGE[0, 1]),
    "dense_crf_loss": lambda scale: dc.dense_crf_loss((scale * IMAGE[:, :2]).softmax(1), IMAGE),
    "gated_crf_loss": lambda scale: dc.gated_crf_loss((scale * IMAGE[:, :2]).softmax(1), IMAGE),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@every_function
def test_forward_mode_is_refused(name: str) -> None:
    """Its tangents would otherwise be zeros."""
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"deepcrf_ext::\w+.*tangent"):
        FUNCTIONS[name](forward_ad.make_dual(torch.ones(()), torch.ones(())))
    with pytest.raises(RuntimeError, match=r"deepcrf_ext::\w+.*tangent"):
        torch.func.jvp(FUNCTIONS[name], (torch.ones(()),), (torch.ones(()),))


@every_function
def test_constants_within_a_dual_level_are_computed(name: str) -> None:
    wanted = FUNCTIONS[name](torch.ones(()))
    with forward_ad.dual_level():
        assert torch.equal(FUNCTIONS[name](torch.ones(())), wanted)


def test_annotations_are_spelt_as_older_versions_of_torch_know_them() -> None:
    assert _spelt(Sequence[int] | None).__origin__ is typing.Union
    (numbers, _) = typing.get_args(_spelt(Sequence[int] | None))
    assert numbers == typing.Sequence[int]
    assert _spelt(list[Tensor]) == typing.List[Tensor]  # noqa: UP006
