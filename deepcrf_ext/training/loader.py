"""Training batches that depend on (seed, epoch, index) alone, so that a run can be continued."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deepcrf_ext.config import DataConfig, TrainConfig
from deepcrf_ext.data import Sample, SegmentationDataset, TrainTransform
from deepcrf_ext.errors import InputError
from deepcrf_ext.parallel.world import ALONE, LostProcessError, World

Transform = Callable[[Sample, np.random.Generator], tuple[Tensor, Tensor]]
"""Makes a sample an image, float32 [3, h, w] RGB 0..255, and labels, int64 [h, w]."""


class TrainingSamples(Dataset[tuple[Tensor, Tensor]]):
    """Augmented samples by (epoch, index): float32 image [3, h, w] and int64 labels [h, w]."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        config: DataConfig,
        seed: int,
        transform: Transform | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform: Transform = TrainTransform(
            config.crop, config.flip, config.scale_range, config.jitter, config.hue
        )
        if transform is not None:
            self.transform = _Checked(transform)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        generator = np.random.default_rng((self.seed, epoch, index))
        return self.transform(self.dataset[index], generator)


class _Checked:
    """A transform made in Python; raises InputError where its result is not a `Transform`'s."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, sample: Sample, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        image, labels = self.transform(sample, generator)
        fits = (
            all(isinstance(given, Tensor) for given in (image, labels))
            and (image.dtype, labels.dtype) == (torch.float32, torch.int64)
            and image.shape == (3, *labels.shape)
            and labels.ndim == 2
        )
        if not fits:
            raise InputError(
                f"transform: gave an image of {_kind(image)} and labels of {_kind(labels)}, must "
                "be float32 [3, h, w] and int64 [h, w] tensors"
            )
        return image, labels


def _kind(given: object) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"


def batches_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; a data set smaller than a batch makes one small batch."""
    return max(1, num_images // batch_size)


def epoch_batches(
    dataset: SegmentationDataset,
    config: TrainConfig,
    epoch: int,
    first: int = 0,
    world: World = ALONE,
    transform: Transform | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The batches of an epoch from number `first` on: images [B, 3, h, w], labels [B, h, w].

    `transform` stands in for the settings' `TrainTransform`. Of every batch, a process gets its
    part (`World.split`); all together get what one alone would.

    Its processes end when the generator is closed.

    Raises InputError when an image cannot be read or images of several sizes meet in a batch.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(len(dataset)).tolist()
    size = config.batch_size
    batches = [
        [(epoch, index) for index in world.split(order[i * size : (i + 1) * size])]
        for i in range(first, batches_per_epoch(len(dataset), size))
    ]
    loader = DataLoader(
        TrainingSamples(dataset, config.data, config.seed, transform),
        batch_sampler=batches,
        num_workers=config.data.workers,
        collate_fn=_collate,
        worker_init_fn=_outlive_stop_request,
        generator=torch.Generator().manual_seed(config.seed),
    )
    with torch.device("cpu"):  # of the generator, where another device is torch's default
        loaded = iter(loader)
    try:
        yield from loaded
    except InputError as error:
        # A worker's error arrives with its traceback as text; the last line is the error itself.
        message = str(error).strip().splitlines()[-1]
        raise InputError(message.removeprefix(f"{InputError.__module__}.InputError: ")) from error
    except (ConnectionError, EOFError) as error:  # while a worker handed a batch over
        raise LostProcessError(f"a process that loads images ended ({error})") from error
    finally:
        if isinstance(loaded, _MultiProcessingDataLoaderIter):
            # Errors hold on to it, and at its end this process would wait for these workers.
            loaded._shutdown_workers()


@contextmanager
def loaders_needed() -> Iterator[None]:
    """Within it, a loader process that dies is a LostProcessError.

    torch raises that as a RuntimeError wherever this process happens to be, also in the middle of
    an exchange with others.
    """
    try:
        yield
    except RuntimeError as error:
        for cause in (error, error.__cause__):
            if str(cause).startswith("DataLoader worker"):
                reason = str(cause).splitlines()[0].rstrip(" .")
                raise LostProcessError(f"a process that loads images ended ({reason})") from error
        raise


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    sizes = {tuple(labels.shape) for _, labels in samples}
    if len(sizes) > 1:
        raise InputError(f"data.crop: must be set, since training images differ in size: {sizes}")
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels)


def _outlive_stop_request(worker: int) -> None:
    """A worker lives through Ctrl-C and the first SIGTERM, which launchers send to whole groups.

    So the process that trains can finish its step; it ends its workers itself.
    """

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, first)
