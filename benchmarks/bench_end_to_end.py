"""Whole training steps and predictions: this package against the same model in plain PyTorch.

    python benchmarks/bench_end_to_end.py [--cases '["small train B=8"]'] [--device cuda]

A training step is the networks, the losses, their backward passes and the optimiser, on a batch at
hand; `load` is what makes the batch: reading (scenes are rendered, the preset `paper` reads JPEG
and PNG files), scaling, cropping and flipping, in the training process. A prediction goes from the
pixels of an image to its labels at full size. `blocks` is one pass of the first five blocks (in the
preset `paper` those of VGG-16) over an image of 450x600.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from eager_model import EagerCRF
from harness import Measurement, measure, run_command, sweep, write_results
from torch import Tensor

from deepcrf_ext.config import PresetName, TrainConfig, preset
from deepcrf_ext.data import SegmentationDataset, open_dataset, write_labels
from deepcrf_ext.data.base import FileDataset, LabelledFile
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.vgg import VGGBlocks
from deepcrf_ext.parallel.device import autocast
from deepcrf_ext.training.loader import epoch_batches
from deepcrf_ext.training.trainer import Trainer

BLOCKS_IMAGE = (450, 600)
PHOTO = {"small": (360, 480), "paper": (375, 500)}  # height and width of an image to predict
VOC_CLASSES = 21
WORKS = ("blocks", "load", "train", "predict")
CONTENDERS = ("deepcrf_ext", "eager")


@dataclass(frozen=True)
class Job:
    """A piece of work on `images` images with a preset's model."""

    preset: PresetName
    work: str
    images: int

    @classmethod
    def parse(cls, name: str) -> Job:
        """The job of a case, as "small train B=8"; the work is one of `WORKS`."""
        chosen, work, images = name.split()
        if chosen not in get_args(PresetName) or work not in WORKS:
            raise ValueError(f"case {name!r} must be such as 'small train B=8'")
        return cls(chosen, work, int(images.removeprefix("B=")))


CASES = (
    "small load B=8",
    "small train B=8",
    "small predict B=1",
    "paper blocks B=1",
    "paper load B=1",
    "paper train B=1",
    "paper predict B=1",
)


def random_files(folder: Path, count: int) -> FileDataset:
    """Photographs of noise, JPEG, and label maps of 21 classes, PNG, of VOC's usual size."""
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (VOC_CLASSES, 3), dtype=np.uint8)
    files = []
    for index in range(count):
        image, labels = folder / f"{index}.jpg", folder / f"{index}.png"
        blocks = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(image), np.kron(blocks, np.ones((32, 32, 1), np.uint8))[:375, :500])
        coarse = random.integers(0, VOC_CLASSES, (6, 8), dtype=np.uint8)
        write_labels(labels, np.kron(coarse, np.ones((63, 63), np.uint8))[:375, :500], palette)
        files.append(LabelledFile(str(index), image, labels))
    return FileDataset(files, tuple(f"class {k}" for k in range(VOC_CLASSES)), palette)


def batches(config: TrainConfig, dataset: SegmentationDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end."""
    epoch = 0
    while True:
        yield from epoch_batches(dataset, config, epoch)
        epoch += 1


def make_call(job: Job, contender: str, device: str, folder: Path) -> Callable[[], Any]:
    """What is timed."""
    config = preset(job.preset)
    config.model.potentials = "all"  # every row of the paper's table
    if job.work == "blocks":
        return make_pass(config, job.images, contender, torch.device(device))
    config = replace(config, batch_size=job.images, warm_start=0.0, device=device)
    if job.preset == "small":
        dataset: SegmentationDataset = open_dataset("scenes", None, "train")
    else:
        dataset = random_files(folder, max(4, job.images))
    source = batches(config, dataset)
    if job.work == "load":
        return lambda: next(source)
    if job.work == "train":
        return make_step(config, dataset, *next(source), contender)
    model = DeepCRF(config.model, dataset.num_classes).to(device).eval()
    photo = np.random.default_rng(0).integers(0, 256, (*PHOTO[job.preset], 3), dtype=np.uint8)
    if contender == "deepcrf_ext":
        return lambda: predict_image(model, photo, model.default_variant())
    eager = EagerCRF(model)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)
    return lambda: eager.predict(pixels.to(device).float()).cpu()


def make_pass(
    config: TrainConfig, images: int, contender: str, device: torch.device
) -> Callable[[], Any]:
    """Blocks 1-5 on one scale: in this package's layout and precision, or in PyTorch's."""
    ours = contender == "deepcrf_ext"
    layout = torch.channels_last if ours else torch.contiguous_format
    blocks = VGGBlocks(config.model, num_scales=1).to(device).eval().to(memory_format=layout)
    pixels = torch.rand(images, 3, *BLOCKS_IMAGE, device=device).to(memory_format=layout)

    @torch.no_grad()
    def run() -> None:
        with autocast(device, None if ours else False):
            blocks(pixels)

    return run


def make_step(
    config: TrainConfig,
    dataset: SegmentationDataset,
    images: Tensor,
    labels: Tensor,
    contender: str,
) -> Callable[[], Any]:
    """A training step on one batch."""
    trainer = Trainer(config, dataset, dataset)
    trainer.model.train()
    if contender == "deepcrf_ext":
        return lambda: trainer.step(images, labels)
    eager = EagerCRF(trainer.model)
    optim = config.optim
    optimiser = torch.optim.SGD(
        trainer.model.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
    )

    def step() -> float:
        optimiser.zero_grad()
        loss = eager.loss(images.to(trainer.device), labels.to(trainer.device))
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def run_worker(
    case: str, contender: str, device: str, seconds: float, repeats: int, processor_time: bool
) -> None:
    torch.manual_seed(0)
    clock = time.process_time if processor_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        call = make_call(Job.parse(case), contender, device, Path(folder))
        print(json.dumps(measure(call, torch.device(device), seconds, repeats, clock)))


def print_rates(measurements: Sequence[Measurement]) -> None:
    """One line a measurement: images a second, ratio to the plain version's, peak memory."""
    print(f"\n{'case':20} {'contender':14} {'images/s':>9} {'speed-up':>9} {'peak MB':>9}")
    plain = {m.case: m.median for m in measurements if m.contender == "eager"}
    for m in measurements:
        if m.median is None or m.peak_bytes is None:
            print(f"{m.case:20} {m.contender:14} {m.left_out:>9}")
            continue
        base = plain.get(m.case)
        ratio = "" if base is None else f"{base / m.median:.1f}x"
        rate = Job.parse(m.case).images / m.median
        print(f"{m.case:20} {m.contender:14} {rate:9.3g} {ratio:>9} {m.peak_bytes / 1e6:9.0f}")


def main(
    device: str = "cpu",
    cases: Sequence[str] = CASES,
    contenders: Sequence[str] = CONTENDERS,
    seconds: float = 2.0,
    repeats: int = 3,
    processor_time: bool = False,
    worker: bool = False,
) -> None:
    """Measures, prints a table and writes the record `end_to_end`.

    Args:
        device: cpu or cuda.
        cases: jobs, as "PRESET blocks|load|train|predict B=images".
        contenders: which of deepcrf_ext, eager.
        seconds: time to repeat each measurement for.
        repeats: fewest runs of each measurement.
        processor_time: measure the processor's time, which other work on the machine does not
            stretch, rather than the clock's; for one thread.
        worker: measure the one case and contender in this process.
    """
    if worker:
        run_worker(cases[0], contenders[0], device, seconds, repeats, processor_time)
        return
    measurements = []
    for case in cases:
        chosen = contenders[:1] if Job.parse(case).work == "load" else contenders
        options = (f"--repeats={repeats}", f"--processor_time={processor_time}")
        measurements += sweep(__file__, device, [case], chosen, seconds, options=options)
    print_rates(measurements)
    clock = "processor" if processor_time else "wall"
    print(write_results("end_to_end", torch.device(device), measurements, clock=clock))


if __name__ == "__main__":
    run_command(main)
