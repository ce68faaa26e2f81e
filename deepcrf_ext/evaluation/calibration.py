"""Weights of a trained model's relations, fitted to held-out images by likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from deepcrf_ext.constants import IGNORE_INDEX, Amp
from deepcrf_ext.data import SegmentationDataset, to_tensors
from deepcrf_ext.data.reduced import spread
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.view_marginals import view_energies
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.nn.calibration import Calibration, fit_weights
from deepcrf_ext.nn.pairwise_crf import log_marginals
from deepcrf_ext.progress import progress


@torch.inference_mode()
def fit_relation_weights(
    model: DeepCRF,
    dataset: SegmentationDataset,
    amp: Amp = None,
    max_images: int | None = None,
    views: Views = ONE_VIEW,
) -> Calibration:
    """Fits `DeepCRF.relation_weights` of the default variant; nothing else of the model changes.

    The networks run once an image, and what they give is kept in memory: 2 · D numbers a node and
    relation. The likelihood is that of the labels at the nodes.

    Args:
        model: in eval mode, on the device to use; with at least one relation.
        dataset: its classes are those of the model.
        amp: as of `deepcrf_ext.evaluation.evaluation.evaluate`.
        max_images: use at most so many, spread over the data set.
        views: how the networks see each image; every window of every view counts as an image.

    Returns:
        The mean over labelled nodes of -log marginal before and after; never worse after.

    Raises:
        InputError: the model has no relation, or no pixel at a node is labelled.
    """
    variant = model.default_variant()
    if not variant.relations:
        raise InputError("the model has no relation, so there is no weight to fit")
    indices = spread(len(dataset), max_images)
    cases, labelled = [], 0
    for index in progress(indices, len(indices), "networks", "image"):
        sample = dataset[index]
        labels = to_tensors(sample)[1]
        for energies, nodes in view_energies(
            model, sample.image, labels, variant.potentials, views, amp
        ):
            unary, _ = model.crf(energies, variant)
            cases.append((unary, energies.pairwise, nodes))
            labelled += int((nodes != IGNORE_INDEX).sum())
    if labelled == 0:
        raise InputError("the images have no labelled pixel at a node")

    def measure(several: Sequence[Mapping[str, float]]) -> list[float]:
        sums = torch.zeros(len(several), dtype=torch.float64, device="cpu")
        for unary, potentials, nodes in progress(cases, len(cases), "weights", "image"):
            for index, weights in enumerate(several):
                scaled = [potentials[name].scaled(weight) for name, weight in weights.items()]
                logs = log_marginals(unary, scaled, model.config.iterations)
                sums[index] += functional.nll_loss(
                    logs, nodes, ignore_index=IGNORE_INDEX, reduction="sum"
                ).item()
        return (sums / labelled).tolist()

    weights, result = fit_weights(model.relation_weights, measure)
    model.set_relation_weights(weights)
    return result
