"""A search for the parameters of the dense CRF that suit a model, trained here or anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepcrf_ext.constants import IGNORE_INDEX, Amp
from deepcrf_ext.data import SegmentationDataset, to_tensors
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.boundaries import BoundaryF1
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.masks import MaskSettings, read_masked
from deepcrf_ext.evaluation.prediction import upsample_labels
from deepcrf_ext.evaluation.regions import SegmentationMetrics, mean_defined, none_if_nan
from deepcrf_ext.evaluation.view_marginals import view_marginals
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings, build_lattices
from deepcrf_ext.models.refine_tiles import (
    MEMORY,
    Energies,
    bytes_needed,
    energies_of,
    refine_labels,
)
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.ops.dense_crf_params import PRESETS, WIDTHS, DenseCRFParams
from deepcrf_ext.progress import Progress, progress

Objective = Literal["mean_iou", "boundary_f1"]

BOUNDS: dict[str, tuple[float, float]] = {
    "gaussian_sxy": (0.5, 20),
    "gaussian_weight": (0.05, 50),
    "bilateral_sxy": (3, 300),
    "bilateral_srgb": (1.5, 100),
    "bilateral_weight": (0.05, 50),
}
"""Smallest and largest value of each parameter that a search tries."""

_WEIGHTS_A_LATTICE = 4
_LATTICES_A_ROUND = 3


@dataclass(frozen=True)
class TrialScores:
    """Scores of one labelling of the images, fractions in 0..1."""

    mean_iou: float
    boundary_f1: float
    pixel_accuracy: float

    def as_dict(self) -> dict[str, float | None]:
        """The scores by name, None where undefined."""
        return {name: none_if_nan(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, in which round, and their scores."""

    round: int
    settings: DenseCRFSettings
    scores: TrialScores

    def as_dict(self) -> dict[str, float | None]:
        """All of it as plain JSON types."""
        return {"round": self.round, **self.settings.as_dict(), **self.scores.as_dict()}


@dataclass(frozen=True)
class TrialImage:
    """image: [3, H, W]. energies: of its pixels. labels: those without a dense CRF, [H, W], K where
    they are unsure. truth: integers [H, W]."""

    image: Tensor
    energies: Energies
    labels: Tensor
    truth: Tensor


class Problem:
    """Images with unary energies and the truth, for any number of trials; a subclass gives them.

    device: where the CRFs run. memory: bytes for one, as of `refine_parts`: of a larger image it is
    done in tiles.
    """

    num_classes: int
    device: torch.device
    memory: int = MEMORY

    def __len__(self) -> int:
        raise NotImplementedError

    def images(self) -> Iterator[TrialImage]:
        """The images in order, each time anew. Raises InputError for one that cannot be read."""
        raise NotImplementedError

    @torch.inference_mode()
    def score(
        self, settings: Sequence[DenseCRFSettings], progress: Callable[[], object]
    ) -> tuple[TrialScores, list[TrialScores]]:
        """Scores without a dense CRF, and of each of the settings.

        Settings of the same widths that follow each other share their lattices. `progress` is
        called after each of them on each image.
        """
        meters = [_Meter(self.num_classes) for _ in range(1 + len(settings))]
        for given in self.images():
            meters[0].update(given.labels, given.truth)
            refine = self._refine_whole if self._fits(given) else self._refine_tiles
            for meter, labels in zip(meters[1:], refine(given, settings), strict=True):
                meter.update(labels, given.truth)
                progress()
        before, *after = (meter.compute() for meter in meters)
        return before, after

    def _fits(self, given: TrialImage) -> bool:
        return bytes_needed(given.truth.numel(), self.num_classes) <= self.memory

    def _refine_whole(
        self, given: TrialImage, settings: Sequence[DenseCRFSettings]
    ) -> Iterator[Tensor]:
        height, width = given.truth.shape
        image = given.image.to(self.device)[None]
        unary = given.energies(slice(0, height), slice(0, width))[None]
        built: tuple[float, ...] = ()
        for setting in settings:
            params, iterations = setting.params, setting.iterations
            widths = tuple(getattr(params, name) for name in WIDTHS)
            if widths != built:
                lattices, built = build_lattices(image, params), widths
            yield dense_crf(unary, image, params, iterations, lattices)[0].argmax(0)

    def _refine_tiles(
        self, given: TrialImage, settings: Sequence[DenseCRFSettings]
    ) -> Iterator[Tensor]:
        for setting in settings:
            yield refine_labels(
                given.energies, given.image, self.num_classes, setting, self.device, self.memory
            )


class ModelProblem(Problem):
    """Images of a data set with a variant's marginals of nodes, which stay in memory.

    Args:
        model: in eval mode, on the device to use.
        variant: whose marginals the dense CRF refines.
        dataset: its classes are those of the model.
        indices: which of its images.
        amp: the precision of the convolutions, as of `TrainConfig.amp`.
        views: how the networks see each image; the marginals of all views are averaged.
    """

    def __init__(
        self,
        model: DeepCRF,
        variant: Variant,
        dataset: SegmentationDataset,
        indices: Sequence[int],
        amp: Amp = None,
        views: Views = ONE_VIEW,
    ) -> None:
        self.num_classes = dataset.num_classes
        self.dataset = dataset
        self.indices = indices
        self.device = model.device
        self.marginals: list[Tensor] = []
        for index in progress(indices, len(indices), "networks", "image"):
            with torch.inference_mode():
                found = view_marginals(model, dataset[index].image, {"": variant}, views, amp)
                self.marginals.append(found[""].cpu())

    def __len__(self) -> int:
        return len(self.indices)

    def images(self) -> Iterator[TrialImage]:
        """As `Problem.images`."""
        for index, marginals in zip(self.indices, self.marginals, strict=True):
            image, truth = to_tensors(self.dataset[index])
            size = (truth.shape[0], truth.shape[1])
            labels = upsample_labels(marginals, size)
            yield TrialImage(image, energies_of(marginals.to(self.device), size), labels, truth)


class MaskProblem(Problem):
    """Images with masks of any model and their true labels, read anew each time.

    Args:
        files: each with its truth; masks all have the same number of classes.
        settings: how masks are read.
        device: where the CRFs run.
    """

    def __init__(
        self, files: Sequence[MaskFiles], settings: MaskSettings, device: torch.device
    ) -> None:
        self.files = files
        self.settings = settings
        self.device = device
        self.num_classes = read_masked(files[0], settings).num_classes

    def __len__(self) -> int:
        return len(self.files)

    def images(self) -> Iterator[TrialImage]:
        """As `Problem.images`."""
        for file in self.files:
            masked = read_masked(file, self.settings)
            if masked.truth is None or masked.num_classes != self.num_classes:
                raise InputError(
                    f"{file.mask}: must have a truth and {self.num_classes} classes as the others"
                )
            yield TrialImage(
                masked.image, partial(masked.energies, self.device), masked.labels, masked.truth
            )


class _Meter:
    """Scores of labels. Pixels that are unsure, labelled `num_classes`, count as wrong."""

    def __init__(self, num_classes: int) -> None:
        self._regions = SegmentationMetrics(num_classes + 1)
        self._boundaries = BoundaryF1(num_classes)

    def update(self, labels: Tensor, truth: Tensor) -> None:
        self._regions.update(labels, truth)
        self._boundaries.update(labels.cpu().numpy(), truth.numpy())

    def compute(self) -> TrialScores:
        regions, boundaries = self._regions.compute(), self._boundaries.compute()
        mean_iou = mean_defined(regions.iou[:-1])
        return TrialScores(mean_iou, boundaries.mean_f1, regions.pixel_accuracy)


def draw(
    best: DenseCRFParams, spread: float, count: int, generator: np.random.Generator
) -> list[DenseCRFParams]:
    """Parameters around the best ones, multiplied by exp(spread · normal), within `BOUNDS`.

    A few trials in a row share their widths, as those can share their lattices; the first ones
    have the widths of `best`.
    """

    def vary(params: DenseCRFParams, names: Sequence[str]) -> DenseCRFParams:
        factors = np.exp(spread * generator.standard_normal(len(names)))
        values: dict[str, Any] = {
            name: float(np.clip(getattr(params, name) * factor, *BOUNDS[name]))
            for name, factor in zip(names, factors, strict=True)
        }
        return replace(params, **values)

    weights = [name for name in BOUNDS if name not in WIDTHS]
    drawn: list[DenseCRFParams] = []
    while len(drawn) < count:
        base = vary(best, WIDTHS) if drawn else best
        size = min(_WEIGHTS_A_LATTICE, count - len(drawn))
        drawn += [vary(base, weights) for _ in range(size)]
    return drawn


def search(
    problem: Problem,
    trials: int,
    iterations: int,
    objective: Objective,
    seed: int,
    on_round: Callable[[TrialScores, list[Trial]], object],
) -> tuple[TrialScores, list[Trial]]:
    """The scores without a dense CRF, and `trials` trials.

    The first round tries the presets. Every further one draws trials around the best so far, at
    first within a factor of about 2.5 and in the end of 1.2. `on_round` gets all so far after
    each. The same seed gives the same trials. Raises InputError for an image that cannot be
    read, and where no pixel has a true label.
    """
    generator = np.random.default_rng(seed)
    tried: list[Trial] = []
    candidates = list(dict.fromkeys(PRESETS.values()))[:trials]
    with Progress(trials * len(problem), "search", "dense CRF") as shown:
        while True:
            number = tried[-1].round + 1 if tried else 0
            settings = [DenseCRFSettings(params, iterations) for params in candidates]
            before, scores = problem.score(settings, shown.update)
            if math.isnan(before.pixel_accuracy):
                raise InputError(f"no pixel of the images has a true label, all are {IGNORE_INDEX}")
            tried += [Trial(number, s, score) for s, score in zip(settings, scores, strict=True)]
            on_round(before, tried)
            best = best_trial(tried, objective)
            shown.describe(f"best {objective} {100 * getattr(best.scores, objective):.2f} %")
            if len(tried) >= trials:
                return before, tried
            spread = 0.9 * 0.2 ** (len(tried) / trials)
            count = min(_WEIGHTS_A_LATTICE * _LATTICES_A_ROUND, trials - len(tried))
            candidates = draw(best.settings.params, spread, count, generator)


def best_trial(trials: Sequence[Trial], objective: Objective) -> Trial:
    """The first of the trials with the highest score; an undefined score is the lowest."""

    def score(trial: Trial) -> float:
        value: float = getattr(trial.scores, objective)
        return -1.0 if math.isnan(value) else value

    return max(trials, key=score)
