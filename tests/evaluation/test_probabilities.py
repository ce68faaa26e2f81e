"""Likelihood and calibration error against their definitions, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from dense_problems import scene

from deepcrf_ext import DenseCRFParams
from deepcrf_ext.evaluation.prediction import label_pixels
from deepcrf_ext.evaluation.probabilities import Probabilities
from deepcrf_ext.models import Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.models.refine_tiles import bytes_needed

BINS = 15  # as in Guo et al.
FULL = Variant("unary", (), dense_crf=True)


def test_scores_are_those_of_the_definitions():
    generator = torch.Generator().manual_seed(0)
    marginals = (3 * torch.randn(4, 9, 7, generator=generator)).softmax(0)
    truth = torch.randint(0, 4, (9, 7), generator=generator)
    truth[2] = 255
    image = torch.zeros(3, 9, 7)
    meter = Probabilities()
    for part in (slice(0, 5), slice(5, 9)):
        pixels = label_pixels(
            marginals[:, part], image[:, part], Variant("unary"), truth=truth[part]
        )
        meter.update(pixels.labels, pixels.confidence, pixels.truth, truth[part])
    found = meter.compute()
    nll = 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    count = 0
    for label, column in zip(truth.flatten().tolist(), marginals.flatten(1).t(), strict=True):
        if label == 255:
            continue
        count += 1
        nll -= math.log(column[label])
        best = float(column.max())
        bins.setdefault(int(best * BINS), []).append((best, int(column.argmax()) == label))
    error = sum(abs(sum(sure - right for sure, right in pixels)) for pixels in bins.values())
    assert found.nll == pytest.approx(nll / count, rel=1e-5)
    assert found.calibration_error == pytest.approx(error / count, rel=1e-5)
    assert 0.05 < found.calibration_error < 1


@pytest.mark.parametrize("number", range(BINS - 1))
def test_every_bin_is_one_of_its_own(number: int) -> None:
    """A wrong pixel in one and a right one in the next do not make up for each other."""
    confidence = (torch.tensor([[number, number + 1]]) + 0.5) / BINS
    meter = Probabilities()
    truth = torch.tensor([[1, 0]])
    meter.update(torch.zeros(1, 2, dtype=torch.uint8), confidence, confidence, truth)
    error = float(confidence[0, 0] + 1 - confidence[0, 1]) / 2
    assert meter.compute().calibration_error == pytest.approx(error)


@pytest.mark.parametrize("pair", [(0.928, 0.93), (0.935, 0.94)])
def test_there_are_as_many_bins_as_in_the_paper(pair: tuple[float, float]) -> None:
    """Of 14 or 16 these would lie in different ones, and not make up for each other."""
    confidence = torch.tensor([pair])
    meter = Probabilities()
    zeros = torch.zeros(1, 2, dtype=torch.uint8)
    meter.update(zeros, confidence, confidence, torch.tensor([[0, 1]]))
    assert meter.compute().calibration_error == pytest.approx((sum(pair) - 1) / 2)


def test_a_certain_and_right_prediction_has_no_error_and_an_impossible_truth_a_finite_nll():
    labels, one = torch.zeros(2, 2, dtype=torch.uint8), torch.ones(2, 2)
    right, wrong = Probabilities(), Probabilities()
    right.update(labels, one, one, torch.zeros(2, 2, dtype=torch.int64))
    wrong.update(labels, one, 0 * one, torch.ones(2, 2, dtype=torch.int64))
    assert right.compute().as_dict() == {"nll": 0.0, "calibration_error": 0.0}
    assert wrong.compute().calibration_error == 1
    assert 80 < wrong.compute().nll < 100


def test_nothing_valid_is_undefined():
    meter = Probabilities()
    ones = torch.ones(1, 1)
    meter.update(ones.byte(), ones, ones, torch.full((1, 1), 255))
    assert meter.compute().as_dict() == {"nll": None, "calibration_error": None}


def test_pixels_after_a_dense_crf_are_of_its_marginals():
    generator = torch.Generator().manual_seed(1)
    marginals = torch.randn(3, 2, 2, generator=generator).softmax(0)
    image = torch.rand(3, 8, 6, generator=generator) * 255
    truth = torch.randint(0, 3, (8, 6), generator=generator)
    truth[0] = 255
    pixels = label_pixels(marginals, image, FULL, truth=truth)
    assert pixels.labels.dtype == torch.uint8
    assert (pixels.truth[0] == 0).all()
    right = pixels.labels == truth
    assert torch.equal(pixels.truth[right], pixels.confidence[right])
    assert (pixels.truth <= pixels.confidence).all()


@pytest.mark.parametrize("variant", [Variant("unary"), FULL])
def test_pixels_without_a_truth(variant: Variant) -> None:
    marginals, image = torch.rand(3, 2, 2).softmax(0), 255 * torch.rand(3, 8, 6)
    assert label_pixels(marginals, image, variant).truth is None


def test_pixels_of_a_large_image_are_those_of_the_whole():
    """Marginals that round to 0 in its tiles count as the least that does not."""
    energies, image = scene(200, 300, 3)
    marginals = (-3 * energies[0, :, ::4, ::4]).softmax(0)
    truth = torch.randint(0, 3, (200, 300), generator=torch.Generator().manual_seed(0))
    truth[:10] = 255
    crf = DenseCRFSettings(DenseCRFParams(3, 3, 10, 13, 10), 5)
    whole, parts = (
        label_pixels(marginals, image[0], FULL, crf, truth, memory)
        for memory in (bytes_needed(200 * 300, 3), bytes_needed(200 * 300, 3) // 3)
    )
    assert float(whole.truth[10:].min()) < 1e-9
    assert float(parts.truth[10:].min()) == 2**-24
    for tensor, wanted in ((parts.truth, whole.truth), (parts.confidence, whole.confidence)):
        assert float((tensor - wanted).abs().max()) < 0.02
        assert tensor.dtype == torch.float32
    assert float((parts.labels == whole.labels).double().mean()) > 0.9995
    assert (parts.truth[:10] == 0).all()
