"""What is left out of a call means what the documentation says; results depend on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import deepcrf_ext as dc
from deepcrf_ext import nn as crf
from deepcrf_ext import reference
from deepcrf_ext.models.refine import DenseCRFSettings

LABELLED = {"ignore_index": 255, "reduction": "mean"}
GATED = {"radius": 5, "kernels": ((0.9, 6.0, 15.0), (0.1, 6.0, None))}
BILATERAL = {"sxy": 80, "srgb": 13}
OPERATORS: dict[str, dict[str, Any]] = {
    "pairwise_nll": LABELLED,
    "pseudo_likelihood_nll": LABELLED,
    "mean_field": {"iterations": 2},
    "dense_crf": {"params": None, "iterations": 10},
    "dense_crf_loss": {**BILATERAL, "mask": None},
    "gated_crf_loss": {**GATED, "mask": None},
}
OTHERS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (
        dc.DenseCRFParams,
        {
            **{"gaussian_sxy": 3, "gaussian_weight": 3},
            **{"bilateral_sxy": 80, "bilateral_srgb": 13, "bilateral_weight": 10},
            **{"compatibility": None, "normalisation": "symmetric"},
        },
    ),
    (dc.RangeBox, {"step": 1}),
    (dc.RangeBox.surrounding, {"size": 0.4}),
    (dc.RangeBox.above_below, {"box_width": 0.3, "box_height": 0.4}),
    (dc.EdgeGraph.from_range_box, {"device": "cpu"}),
    (crf.PairwisePotential, {"hidden": 128}),
    (
        crf.PairwiseCRF,
        {
            **{"relations": ("surrounding", "above_below"), "hidden": 128},
            **{"iterations": 3, "ignore_index": 255},
        },
    ),
    (crf.PairwiseCRF.loss, {"objective": "piecewise", "class_weights": None}),
    (crf.DenseCRF, {"iterations": 5, "params": None, "learn": ("weights", "compatibility")}),
    (crf.DenseCRFLoss, BILATERAL),
    (crf.GatedCRFLoss, GATED),
    (DenseCRFSettings, {"iterations": 10}),
]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Of every argument that has one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("functions", [dc, reference], ids=["operators", "reference"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(functions: Any, name: str) -> None:
    found = defaults(getattr(functions, name))
    assert {argument: found[argument] for argument in OPERATORS[name]} == OPERATORS[name]


@pytest.mark.parametrize(("function", "wanted"), OTHERS, ids=lambda v: getattr(v, "__name__", ""))
def test_parameters_graphs_and_layers(function: Callable[..., Any], wanted: dict[str, Any]) -> None:
    found = defaults(function)
    assert {argument: found[argument] for argument in wanted} == wanted


def test_published_parameters() -> None:
    """Of the README of pydensecrf, ConvCRF's default, DeepLab v2 with ResNet-101 on VOC 2012."""
    for name in ("pydensecrf", "convcrf"):
        assert dc.DenseCRFParams.preset(name) == dc.DenseCRFParams(3, 3, 80, 13, 10)
    assert dc.DenseCRFParams.preset("deeplab") == dc.DenseCRFParams(1, 3, 67, 3, 4)
