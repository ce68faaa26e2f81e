"""The losses for weak labels as modules."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_problems import scene

from deepcrf_ext import dense_crf_loss, gated_crf_loss
from deepcrf_ext.nn import DenseCRFLoss, GatedCRFLoss


@pytest.mark.parametrize("masked", [False, True])
def test_modules_are_the_functions(masked: bool) -> None:
    unary, image = scene(7, 9, 3, batch=2)
    probabilities = unary.softmax(1)
    mask = torch.rand(2, 7, 9) > 0.5 if masked else None
    kernels = [(0.5, 3, 20), (0.1, 2, None)]
    for module, wanted in (
        (DenseCRFLoss(), dense_crf_loss(probabilities, image, mask=mask)),
        (DenseCRFLoss(9, (5, 6, 7)), dense_crf_loss(probabilities, image, 9, (5, 6, 7), mask)),
        (GatedCRFLoss(), gated_crf_loss(probabilities, image, mask=mask)),
        (GatedCRFLoss(2, kernels), gated_crf_loss(probabilities, image, 2, kernels, mask)),
    ):
        assert torch.equal(module(probabilities, image, mask), wanted)
        assert torch.equal(copy.deepcopy(module)(probabilities, image, mask), wanted)
        assert not module.state_dict()


def test_they_print_their_settings() -> None:
    assert repr(DenseCRFLoss(20, [5, 6, 7])) == "DenseCRFLoss(sxy=20.0, srgb=(5.0, 6.0, 7.0))"
    kernels = "((0.5, 3.0, 20.0), (0.1, 2.0, None))"
    assert (
        repr(GatedCRFLoss(2, [(0.5, 3, 20), (0.1, 2, None)]))
        == f"GatedCRFLoss(radius=2, kernels={kernels})"
    )


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="sxy: got 0"):
        DenseCRFLoss(sxy=0)
    with pytest.raises(ValueError, match="radius: got -1"):
        GatedCRFLoss(radius=-1)
    with pytest.raises(ValueError, match=r"kernels\[0\]: got 3"):
        GatedCRFLoss(kernels=[3])  # type: ignore[list-item]
