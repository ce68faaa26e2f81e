"""Masks of any model, sharpened by a dense CRF: whole folders, in batches, picked up again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcrf_ext.data.predictions import read_label_picture
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.masks import Kind, Masked, MaskFiles, MaskSettings, read_masked
from deepcrf_ext.evaluation.regions import SegmentationMetrics, mean_defined
from deepcrf_ext.models.refine import DenseCRFSettings, build_lattices
from deepcrf_ext.models.refine_tiles import MEMORY, bytes_needed, refine_parts
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.records.result_folder import ResultFolder, Task
from deepcrf_ext.whole_files import write_whole

Item = TypeVar("Item")
Result = TypeVar("Result")

RECORD = "refine.json"


@dataclass(frozen=True)
class RefinedFolder:
    """Where results go: labels/NAME.png and, if wanted, probabilities/NAME.npz.

    Refined saliency is written as probabilities/NAME.png, in grey levels.
    """

    path: Path
    probabilities: bool = False

    def labels(self, name: str) -> Path:
        """The refined labels of a name."""
        return self.path / "labels" / f"{name}.png"

    def earlier(self) -> tuple[Path, ...]:
        """The folders that an earlier run has written to; none if there was none."""
        folders = self.path / "labels", self.path / "probabilities"
        return folders if (self.path / RECORD).exists() else ()

    def _probabilities(self, name: str, kind: Kind) -> Path:
        suffix = "png" if kind == "saliency" else "npz"
        return self.path / "probabilities" / f"{name}.{suffix}"

    def begin(
        self,
        files: Sequence[MaskFiles],
        masks: MaskSettings,
        crf: DenseCRFSettings,
        overwrite: bool,
    ) -> list[MaskFiles]:
        """Note the settings of the run; which of the files are still to be done.

        Raises InputError where a result would replace an input, and where results of other settings
        or files are here and not to be overwritten.
        """
        tasks = {file.name: self._task(file, masks) for file in files}
        truths = [file.truth for file in files if file.truth is not None]
        settings = {**asdict(masks), **crf.as_dict()}
        todo = ResultFolder(self.path, RECORD).begin(
            list(tasks.values()), settings, overwrite, truths
        )
        names = {task.name for task in todo}
        return [file for file in files if file.name in names]

    def _task(self, file: MaskFiles, masks: MaskSettings) -> Task:
        results = [self.labels(file.name)]
        if self.probabilities:
            results.append(self._probabilities(file.name, masks.kind_of(file.mask)))
        return Task(file.name, (file.image, file.mask), tuple(results))

    def write(self, masked: Masked, marginals: Tensor | None, labels: Tensor) -> None:
        """Write the results of an image: marginals float [K, H, W] where wanted, labels [H, W]."""
        path = self._probabilities(masked.name, masked.kind)
        path.unlink(missing_ok=True)  # which may be of an earlier image or settings
        if marginals is not None:
            if masked.kind == "saliency":
                grey = (marginals[1].float() * 255).round().to(torch.uint8).numpy()
                self._write(path, lambda file: Image.fromarray(grey).save(file, format="PNG"))
            else:
                half = marginals.to(torch.float16).numpy()
                self._write(path, lambda file: np.savez_compressed(file, probabilities=half))
        self._write(self.labels(masked.name), masked.encode(labels.numpy()).write)

    @staticmethod
    def _write(path: Path, write: Callable[[Any], object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as file:
            write(file)


@dataclass
class Outcome:
    """What became of a run: how many were refined, and the problems, a line each.

    before, after: mean IoU of the masks and of the refined labels, NaN without a true label.
    scored: on how many images.
    """

    refined: int = 0
    problems: list[str] = field(default_factory=list)
    before: float = float("nan")
    after: float = float("nan")
    scored: int = 0


def refine_files(
    files: Sequence[MaskFiles],
    masks: MaskSettings,
    crf: DenseCRFSettings,
    output: RefinedFolder,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 2,
    memory: int = MEMORY,
    finished: Sequence[MaskFiles] = (),
    watch: Callable[[Iterable[str | None]], Iterable[str | None]] = iter,
) -> Outcome:
    """Refine masks and write the results.

    Args:
        files: those to be done.
        masks: how they are read.
        crf: of the dense CRF.
        output: where results go.
        device: where the CRF runs.
        batch_size: images of one size and number of classes that run together.
        workers: threads that read and write.
        memory: bytes for one image beside itself and its results; a larger one is refined in tiles.
        finished: files that an earlier run has done, which count in the scores.
        watch: hands through what became of each image, None or a problem.

    Raises:
        InputError: a kernel is too narrow for an image.
        OSError: a result cannot be written.
    """
    outcome, scores = Outcome(), _BeforeAndAfter()
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        for masked in _ahead(threads, lambda file: _read(file, masks), finished):
            if isinstance(masked, str):
                outcome.problems.append(masked)
            elif masked.truth is not None:
                labels = masked.decode(read_label_picture(output.labels(masked.name)))
                scores.update(masked, labels)
        results = _results(files, masks, crf, output, device, batch_size, threads, scores, memory)
        for problem in watch(results):
            if problem is None:
                outcome.refined += 1
            else:
                outcome.problems.append(problem)
    outcome.before, outcome.after, outcome.scored = scores.compute()
    return outcome


def _results(
    files: Sequence[MaskFiles],
    masks: MaskSettings,
    crf: DenseCRFSettings,
    output: RefinedFolder,
    device: torch.device,
    batch_size: int,
    threads: ThreadPoolExecutor,
    scores: _BeforeAndAfter,
    memory: int,
) -> Iterator[str | None]:
    """What became of each image, in the order of their ends."""
    writing: deque[Future[None]] = deque()

    def refined(batch: list[Masked]) -> Iterator[None]:
        for masked, marginals in zip(batch, refine_batch(batch, crf, device), strict=True):
            labels = marginals.argmax(0).to(torch.uint8).cpu()
            finish(masked, marginals.cpu() if output.probabilities else None, labels)
            yield None

    def finish(masked: Masked, marginals: Tensor | None, labels: Tensor) -> None:
        scores.update(masked, labels)
        writing.append(threads.submit(output.write, masked, marginals, labels))
        while len(writing) > _PENDING:
            writing.popleft().result()

    waiting: dict[tuple[int, ...], list[Masked]] = {}
    for masked in _ahead(threads, lambda file: _read(file, masks), files):
        if isinstance(masked, str):
            yield masked
            continue
        if bytes_needed(masked.size[0] * masked.size[1], masked.num_classes) > memory:
            finish(masked, *refine_large(masked, crf, device, memory, output))
            yield None
            continue
        shape = (masked.num_classes, *masked.size)
        batch = waiting.setdefault(shape, [])
        batch.append(masked)
        if len(batch) >= batch_size:
            yield from refined(waiting.pop(shape))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield from refined(waiting.pop(next(iter(waiting))))  # the oldest
    for batch in waiting.values():
        yield from refined(batch)
    for future in writing:
        future.result()


_PENDING = 4


def _read(file: MaskFiles, masks: MaskSettings) -> Masked | str:
    try:
        return read_masked(file, masks)
    except InputError as error:
        return str(error)


@torch.inference_mode()
def refine_batch(
    batch: Sequence[Masked], crf: DenseCRFSettings, device: torch.device
) -> list[Tensor]:
    """Refined marginals, float32 [K, H, W] each, of images of one size and number of classes."""
    image = torch.stack([masked.image for masked in batch]).to(device)
    energies = torch.stack([masked.energies(device) for masked in batch])
    lattices = build_lattices(image, crf.params)
    return list(dense_crf(energies, image, crf.params, crf.iterations, lattices))


def refine_large(
    masked: Masked,
    crf: DenseCRFSettings,
    device: torch.device,
    memory: int,
    output: RefinedFolder,
) -> tuple[Tensor | None, Tensor]:
    """Refined marginals, float16 [K, H, W] where they are to be written, and labels of an image
    that is refined in tiles."""
    labels = torch.empty(masked.size, dtype=torch.uint8, device="cpu")
    kept = None
    if output.probabilities:
        kept = torch.empty((masked.num_classes, *masked.size), dtype=torch.float16, device="cpu")
    parts = refine_parts(
        lambda rows, columns: masked.energies(device, rows, columns),
        masked.image,
        masked.num_classes,
        crf,
        device,
        memory,
    )
    for rows, columns, marginals in parts:
        labels[rows, columns] = marginals.argmax(0)
        if kept is not None:
            kept[:, rows, columns] = marginals
    return kept, labels


def _ahead(
    threads: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """The results of a function in order, a few of them computed ahead."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(threads.submit(function, item))
        if len(pending) > _PENDING:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class _BeforeAndAfter:
    """Scores of masks as they are and refined. What a mask leaves unsure is counted as missed."""

    def __init__(self) -> None:
        self._metrics: tuple[SegmentationMetrics, SegmentationMetrics] | None = None
        self._count = 0

    def update(self, masked: Masked, labels: Tensor) -> None:
        if masked.truth is None:
            return
        if self._metrics is None:
            size = masked.num_classes + 1  # the last one is "unsure"
            self._metrics = SegmentationMetrics(size), SegmentationMetrics(size)
        if self._metrics[0].num_classes != masked.num_classes + 1:
            raise InputError(
                f"{masked.name}: its mask has {masked.num_classes} classes, others have "
                f"{self._metrics[0].num_classes - 1}; without --truth they may differ"
            )
        for metrics, predicted in zip(self._metrics, (masked.labels, labels), strict=True):
            metrics.update(predicted, masked.truth)
        self._count += 1

    def compute(self) -> tuple[float, float, int]:
        """Mean IoU before and after, over the classes there are, and the number of images."""
        if self._metrics is None:
            return float("nan"), float("nan"), 0
        before, after = (mean_defined(m.compute().iou[:-1]) for m in self._metrics)
        return before, after, self._count
