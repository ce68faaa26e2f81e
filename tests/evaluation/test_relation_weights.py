"""Weights of a model's relations fitted to images: what is measured, and on which images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import TINY_MODEL

from deepcrf_ext.data import LabelledPairs, SegmentationDataset, to_tensors
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.calibration import fit_relation_weights
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.node_losses import node_labels

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("a", "b", "c")


def images(count: int, seed: int = 0) -> SegmentationDataset:
    """Random images with patches of labels, some of them ignored."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        labels = np.kron(random.choice([0, 1, 2, 255], (4, 5)), np.ones((8, 8))).astype(np.uint8)
        pairs.append((random.integers(0, 256, (32, 40, 3), dtype=np.uint8), labels))
    return LabelledPairs(pairs, CLASSES)


def nll(model: DeepCRF, dataset: SegmentationDataset, indices: list[int]) -> float:
    """The mean over labelled nodes of -log of the marginal of the label."""
    values = []
    for index in indices:
        image, labels = to_tensors(dataset[index])
        with torch.no_grad():
            energies = model.energies(image[None])
            marginals = model.marginals(energies, model.default_variant())[0].flatten(1)
        nodes = node_labels(labels[None], energies.grid[1:])
        known = (nodes != 255).nonzero().flatten()
        values.append(-marginals[nodes[known], known].log())
    return torch.cat(values).mean().item()


@pytest.mark.parametrize("potentials", [None, ("surrounding",)], ids=["with unary", "without"])
def test_the_likelihood_of_some_of_the_images(potentials: tuple[str, ...] | None) -> None:
    torch.manual_seed(0)
    model = DeepCRF(replace(TINY_MODEL, potentials=potentials), 3).eval()
    dataset, seen = images(5), [1, 3]  # spread over the data set
    before = nll(model, dataset, seen)
    result = fit_relation_weights(model, dataset, amp=False, max_images=2)
    assert result.before == pytest.approx(before, rel=1e-5)
    assert result.after == pytest.approx(nll(model, dataset, seen), rel=1e-5)
    assert result.after < result.before
    everything = fit_relation_weights(model, dataset, amp=False)
    assert everything.after == pytest.approx(nll(model, dataset, list(range(5))), rel=1e-5)


def test_what_cannot_be_fitted() -> None:
    alone = DeepCRF(replace(TINY_MODEL, potentials=("unary",)), 3).eval()
    with pytest.raises(InputError, match="no relation"):
        fit_relation_weights(alone, images(1))
    ignored = LabelledPairs([(np.zeros((32, 40, 3), np.uint8), np.full((32, 40), 255))], CLASSES)
    with pytest.raises(InputError, match="no labelled pixel"):
        fit_relation_weights(DeepCRF(TINY_MODEL, 3).eval(), ignored)
