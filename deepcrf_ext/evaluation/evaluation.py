"""A model over a data set: the one loop that training, evaluation and reproduction measure by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from deepcrf_ext.constants import Amp
from deepcrf_ext.data import SegmentationDataset, to_tensors
from deepcrf_ext.evaluation.boundaries import BoundaryF1, BoundaryScores
from deepcrf_ext.evaluation.prediction import label_pixels, named_variant
from deepcrf_ext.evaluation.probabilities import Probabilities, ProbabilityScores
from deepcrf_ext.evaluation.regions import Scores, SegmentationMetrics
from deepcrf_ext.evaluation.view_marginals import now, view_marginals
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.parallel.world import ALONE, World
from deepcrf_ext.progress import progress


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image by itself; NaN where undefined.

    image: its name in the data set. row: the name of the variant. pixels: how many are labelled.
    mean_iou: over the classes of its truth or prediction. pixel_accuracy: of those pixels. nll:
    their mean -log of the marginal of the true label, in nats.
    """

    image: str
    row: str
    pixels: int
    mean_iou: float
    pixel_accuracy: float
    nll: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    scores, boundaries, probabilities: by the name of the variant; `boundaries` is empty where they
        were not asked for.
    images: how many.
    network_seconds: mean time per image of all the networks.
    variant_seconds: mean time per image of a variant's inference and upsampling, by its name.
    per_image: scores of each image and variant, in the order of the data set.
    """

    scores: dict[str, Scores]
    boundaries: dict[str, BoundaryScores]
    probabilities: dict[str, ProbabilityScores]
    images: int
    network_seconds: float
    variant_seconds: dict[str, float]
    per_image: tuple[ImageScores, ...] = ()

    def summary(self) -> dict[str, dict[str, float]]:
        """A few numbers of each variant, by its name: what a training logs."""
        return {
            name: {
                "mean_iou": score.mean_iou,
                "pixel_accuracy": score.pixel_accuracy,
                **vars(self.probabilities[name]),
            }
            for name, score in self.scores.items()
        }


class EvaluationStopped(Exception):
    """An evaluation was asked to stop before its end."""


def before_and_after(model: DeepCRF) -> dict[str, Variant]:
    """The unary alone (if the model has one) and with all relations, by `DeepCRF.name_of`."""
    crf = model.default_variant()
    variants = [Variant(crf.unary), crf] if crf.unary is not None and crf.relations else [crf]
    return {model.name_of(variant): variant for variant in variants}


def choose_variants(model: DeepCRF, names: Sequence[str] | None) -> dict[str, Variant]:
    """Variants by name: None gives `before_and_after`, "all" every one that the model offers.

    Raises InputError for an unknown one and for one whose potentials the model lacks.
    """
    if not names:
        return before_and_after(model)
    if "all" in names:
        return model.variants()
    return {name: named_variant(model, name) for name in names}


@torch.inference_mode()
def evaluate(
    model: DeepCRF,
    dataset: SegmentationDataset,
    variants: Mapping[str, Variant],
    amp: Amp = None,
    dense_crf: DenseCRFSettings | None = None,
    world: World = ALONE,
    *,
    views: Views = ONE_VIEW,
    boundaries: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Scores of several variants in one pass: each network runs once an image, for all of them.

    Args:
        model: in eval mode, on the device to use.
        dataset: its classes are those of the model; labels are compared at the size of the image.
        variants: by the names that the results get.
        amp: the precision of the convolutions, as of `TrainConfig.amp`.
        dense_crf: settings of the dense CRF of variants that have one.
        world: each process measures its share of the images; all get the scores of the whole.
        views: how the networks see each image; the marginals of all views are averaged.
        boundaries: measure outlines too, which takes longer than the rest of the scores.
        stop: asked before every image whether to go on.

    Raises:
        InputError: a sample cannot be read.
        EvaluationStopped: in every process, when `stop` of any has said so.
    """
    device = model.device
    regions = {name: SegmentationMetrics(model.num_classes) for name in variants}
    outlines = {name: BoundaryF1(model.num_classes) for name in variants if boundaries}
    probabilities = {name: Probabilities() for name in variants}
    seconds = dict.fromkeys(("networks", *variants), 0.0)
    per_image: dict[int, list[ImageScores]] = {}
    indices = world.share(len(dataset))
    for index in progress(indices, len(indices), "evaluate", "image", quiet=not world.is_main):
        if stop():
            break
        sample = dataset[index]
        image, truth = (tensor.to(device) for tensor in to_tensors(sample))
        per_image[index] = []
        marginals = view_marginals(model, sample.image, variants, views, amp, seconds)
        for name, variant in variants.items():
            start = now(device)
            pixels = label_pixels(marginals[name], image, variant, dense_crf, truth)
            seconds[name] += now(device) - start
            assert pixels.truth is not None
            region, probability = SegmentationMetrics(model.num_classes), Probabilities()
            region.update(pixels.labels, truth)
            probability.update(pixels.labels, pixels.confidence, pixels.truth, truth)
            per_image[index].append(_of_image(sample.name, name, region, probability))
            regions[name].add(region)
            probabilities[name].add(probability)
            if boundaries:
                outlines[name].update(pixels.labels.cpu().numpy(), truth.cpu().numpy())
    if any(world.any(stop())):
        raise EvaluationStopped
    for meters in (regions, outlines, probabilities):
        for meter in meters.values():
            meter.add_up(world)
    total = world.sum(torch.tensor(list(seconds.values()), dtype=torch.float64, device="cpu"))
    images = {index: rows for part in world.gather(per_image) for index, rows in part.items()}
    network_mean, *means = (total / max(len(dataset), 1)).tolist()
    return Evaluation(
        scores={name: meter.compute() for name, meter in regions.items()},
        boundaries={name: meter.compute() for name, meter in outlines.items()},
        probabilities={name: meter.compute() for name, meter in probabilities.items()},
        images=len(dataset),
        network_seconds=network_mean,
        variant_seconds=dict(zip(variants, means, strict=True)),
        per_image=tuple(row for index in sorted(images) for row in images[index]),
    )


def _of_image(
    image: str, row: str, region: SegmentationMetrics, probability: Probabilities
) -> ImageScores:
    """The scores that meters of one image have counted."""
    scores, nll = region.compute(), probability.compute().nll
    pixels = int(scores.confusion.sum())
    return ImageScores(image, row, pixels, scores.mean_iou, scores.pixel_accuracy, nll)
