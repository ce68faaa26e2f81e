"""Masks of any model, sharpened by a dense CRF: whole folders, in batches, picked up again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.mask_files import MaskFiles
from deepcrf_ext.evaluation.masks import Kind, Masked, MaskSettings, read_masked
from deepcrf_ext.evaluation.regions import SegmentationMetrics, mean_defined
from deepcrf_ext.models.refine import DenseCRFSettings, build_lattices
from deepcrf_ext.models.refine_tiles import MEMORY, bytes_needed, refine_parts
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.records.result_folder import REFINED, ResultFolder, Task
from deepcrf_ext.whole_files import write_whole

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RefinedFolder:
    """Where results go: labels/NAME.png and, if wanted, probabilities/NAME.npz, overlays/NAME.png.

    Refined saliency is written as probabilities/NAME.png, in grey levels.

    overlay: makes the picture of a mask and its refined labels, uint8 [H, W]; None for none.
    """

    path: Path
    probabilities: bool = False
    overlay: Callable[[Masked, np.ndarray], np.ndarray] | None = None

    def labels(self, name: str) -> Path:
        """The refined labels of a name."""
        return self.path / "labels" / f"{name}.png"

    @cached_property
    def _folder(self) -> ResultFolder:
        """The folder, with the notes of what is in it."""
        return ResultFolder(self.path, REFINED)

    def _probabilities(self, name: str, kind: Kind) -> Path:
        suffix = "png" if kind == "saliency" else "npz"
        return self.path / "probabilities" / f"{name}.{suffix}"

    def _overlay(self, name: str) -> Path:
        return self.path / "overlays" / f"{name}.png"

    def begin(
        self,
        files: Sequence[MaskFiles],
        masks: MaskSettings,
        crf: DenseCRFSettings,
        overwrite: bool,
    ) -> list[MaskFiles]:
        """Records the run in the folder and returns the files that are still to be done.

        Raises InputError where a result would replace an input, and where results of other settings
        or files are here and not to be overwritten.
        """
        tasks = {file.name: self._task(file, masks) for file in files}
        truths = [file.truth for file in files if file.truth is not None]
        settings = {**asdict(masks), **crf.as_dict()}
        todo = self._folder.begin(list(tasks.values()), settings, overwrite, truths)
        names = {task.name for task in todo}
        return [file for file in files if file.name in names]

    def _task(self, file: MaskFiles, masks: MaskSettings) -> Task:
        optional = {
            self._probabilities(file.name, masks.kind): self.probabilities,
            self._overlay(file.name): self.overlay is not None,
        }
        wanted = tuple(path for path, is_wanted in optional.items() if is_wanted)
        others = tuple(path for path, is_wanted in optional.items() if not is_wanted)
        return Task(file.name, (file.image, file.mask), (self.labels(file.name), *wanted), others)

    def write(self, masked: Masked, marginals: Tensor | None, labels: Tensor) -> None:
        """Write the results of an image: marginals float [K, H, W] where wanted, labels [H, W]."""
        path, overlay = self._probabilities(masked.name, masked.kind), self._overlay(masked.name)
        for earlier in (path, overlay):
            earlier.unlink(missing_ok=True)  # which may be of an earlier image or settings
        if marginals is not None:
            if masked.kind == "saliency":
                grey = (marginals[1].float() * 255).round().to(torch.uint8).numpy()
                self._write(path, lambda file: Image.fromarray(grey).save(file, format="PNG"))
            else:
                half = marginals.to(torch.float16).numpy()
                self._write(path, lambda file: np.savez_compressed(file, probabilities=half))
        if self.overlay is not None:
            picture = Image.fromarray(self.overlay(masked, labels.numpy()))
            self._write(overlay, lambda file: picture.save(file, format="PNG"))
        self._write(
            self.labels(masked.name), lambda file: masked.coding.write(file, labels.numpy())
        )

    @staticmethod
    def _write(path: Path, write: Callable[[Any], object]) -> None:
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


Refined = tuple[Masked, Tensor | None, Tensor]
"""A mask, its refined marginals, float [K, H, W], where they are written, and labels, [H, W]."""


@dataclass(frozen=True)
class Refinement:
    """How masks are refined, and where to.

    masks: how they are read. crf: of the dense CRF. output: where results go. device: where the CRF
    runs. batch_size: images of one size and number of classes that run together. workers: threads
    that read and write. memory: bytes for one image beside itself and its results; a larger one is
    refined in tiles.
    """

    masks: MaskSettings
    crf: DenseCRFSettings
    output: RefinedFolder
    device: torch.device
    batch_size: int = 1
    workers: int = 2
    memory: int = MEMORY

    def run(
        self,
        files: Sequence[MaskFiles],
        finished: Sequence[MaskFiles] = (),
        watch: Callable[[Iterable[str | None]], Iterable[str | None]] = iter,
    ) -> Outcome:
        """Refine masks and write the results.

        Args:
            files: those to be done.
            finished: files that an earlier run has done, which count in the scores.
            watch: hands through what became of each file, None or a problem.

        Raises:
            InputError: a kernel is too narrow for an image.
            OSError: a result cannot be written.
        """
        outcome, scores = Outcome(), _BeforeAndAfter()
        with ThreadPoolExecutor(self.workers) as threads:
            scored = [file for file in finished if file.truth is not None]
            for masked in _ahead(threads, self._read, scored):
                if isinstance(masked, str):
                    outcome.problems.append(masked)
                else:
                    labels = masked.coding.read(self.output.labels(masked.name))
                    scores.update(masked, torch.from_numpy(labels))
            for problem in watch(self._results(files, threads, scores)):
                if problem is None:
                    outcome.refined += 1
                else:
                    outcome.problems.append(problem)
        outcome.before, outcome.after, outcome.scored = scores.compute()
        return outcome

    def _read(self, file: MaskFiles) -> Masked | str:
        try:
            return read_masked(file, self.masks)
        except InputError as error:
            return str(error)

    def _results(
        self, files: Sequence[MaskFiles], threads: ThreadPoolExecutor, scores: _BeforeAndAfter
    ) -> Iterator[str | None]:
        """Scores and writes results; yields None or a problem for each file as it ends."""
        writing: deque[Future[None]] = deque()
        for refined in self._refined(files, threads):
            if isinstance(refined, str):
                yield refined
                continue
            masked, marginals, labels = refined
            scores.update(masked, labels)
            writing.append(threads.submit(self.output.write, masked, marginals, labels))
            while len(writing) > _PENDING:
                writing.popleft().result()
            yield None
        for future in writing:
            future.result()

    def _refined(
        self, files: Sequence[MaskFiles], threads: ThreadPoolExecutor
    ) -> Iterator[Refined | str]:
        """Results, or the problems of files that cannot be read."""
        waiting: dict[tuple[int, ...], list[Masked]] = {}
        for masked in _ahead(threads, self._read, files):
            if isinstance(masked, str):
                yield masked
                continue
            if bytes_needed(masked.size[0] * masked.size[1], masked.num_classes) > self.memory:
                yield self._in_tiles(masked)
                continue
            shape = (masked.num_classes, *masked.size)
            batch = waiting.setdefault(shape, [])
            batch.append(masked)
            if len(batch) >= self.batch_size:
                yield from self._together(waiting.pop(shape))
            elif sum(map(len, waiting.values())) >= 4 * self.batch_size:
                yield from self._together(waiting.pop(next(iter(waiting))))  # the oldest
        for batch in waiting.values():
            yield from self._together(batch)

    @torch.inference_mode()
    def _together(self, batch: Sequence[Masked]) -> list[Refined]:
        """Results of images of one size and number of classes."""
        image = torch.stack([masked.image for masked in batch]).to(self.device)
        energies = torch.stack([masked.energies(self.device) for masked in batch])
        params = self.crf.params
        lattices = build_lattices(image, params)
        marginals = dense_crf(energies, image, params, self.crf.iterations, lattices)
        labels = marginals.argmax(1).to(torch.uint8).cpu()
        kept = marginals.cpu() if self.output.probabilities else [None] * len(batch)
        return list(zip(batch, kept, labels, strict=True))

    def _in_tiles(self, masked: Masked) -> Refined:
        """The result of a large image; its marginals are float16."""
        labels = torch.empty(masked.size, dtype=torch.uint8, device="cpu")
        kept = None
        if self.output.probabilities:
            size = (masked.num_classes, *masked.size)
            kept = torch.empty(size, dtype=torch.float16, device="cpu")
        parts = refine_parts(
            lambda rows, columns: masked.energies(self.device, rows, columns),
            masked.image,
            masked.num_classes,
            self.crf,
            self.device,
            self.memory,
        )
        for rows, columns, marginals in parts:
            labels[rows, columns] = marginals.argmax(0)
            if kept is not None:
                kept[:, rows, columns] = marginals
        return masked, kept, labels


_PENDING = 4


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
    """Scores of masks before and after. Pixels that a mask leaves unsure count as wrong."""

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
