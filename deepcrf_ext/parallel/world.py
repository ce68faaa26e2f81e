"""Several processes that train or evaluate one model together, as `torchrun` starts them.

Every process has the whole model and a share of the images. What they exchange goes over gloo for
CPU tensors and NCCL for CUDA tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

# Before there is a group, which its defaults would keep.
import torch.distributed.nn.functional  # noqa: F401
from torch import Tensor, distributed

from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.parallel.device import choose_device

T = TypeVar("T")
_BUCKET = 1 << 24  # elements that are sent at a time
_TIMEOUT = timedelta(minutes=30)  # rank 0 may be writing, others may have fewer images


class LostProcessError(TrainingError):
    """Another process of the run, one that trains or loads, has ended or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among `size` that work together; alone unless made by `join`.

    Collective methods are called by every process, in the same order; alone, they do nothing.
    They raise LostProcessError when another process is gone.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` items are this process's; each is exactly one's."""
        return range(self.rank, count, self.size)

    def split(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a sequence: in order, the lengths differ by at most 1."""
        length, longer = divmod(len(items), self.size)
        first = self.rank * length + min(self.rank, longer)
        return items[first : first + length + (self.rank < longer)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with _others_needed(self):
            distributed.all_reduce(total)
        return total

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process."""
        counts = self.sum(torch.tensor(flags, dtype=torch.int64, device="cpu"))
        return [count > 0 for count in counts.tolist()]

    def from_main(self, value: T) -> T:
        """The value, any that pickles, that rank 0 gives."""
        if self.size == 1:
            return value
        values = [value]
        with _others_needed(self):
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values, any that pickle, of all processes in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with _others_needed(self):
            distributed.all_gather_object(values, value)
        return values


ALONE = World()


class GradientSum:
    """Adds up gradients over all processes while further ones are being computed.

    It stands for DistributedDataParallel, which is made for one forward and one backward pass of a
    whole module: here every potential has its own passes, some potentials may not train yet, and a
    step may be computed in parts.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._started: set[int] = set()
        self._pending: list[tuple[list[Tensor], Tensor, distributed.Work]] = []

    def start(self, parameters: Iterable[Tensor]) -> None:
        """Sends the gradients of these parameters, which must be final."""
        if self.world.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None or id(parameter) in self._started:
                continue
            self._started.add(id(parameter))
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
                self._send(bucket)
                bucket = []
        if bucket:
            self._send(bucket)

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """Sends all other gradients of a step, and waits for the sums."""
        self.start(parameters)
        for gradients, flat, work in self._pending:
            with _others_needed(self.world):
                work.wait()
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, values in zip(gradients, flat.split(sizes), strict=True):
                gradient.copy_(values.view_as(gradient))
        self._pending = []
        self._started = set()

    def _send(self, gradients: list[Tensor]) -> None:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _others_needed(self.world):
            work = distributed.all_reduce(flat, async_op=True)
        assert work is not None
        self._pending.append((gradients, flat, work))


@contextmanager
def join(device: str) -> Iterator[World]:
    """Joins the processes that `torchrun` started with this one; alone without torchrun.

    Args:
        device: the setting of `choose_device`, in which "auto" and "cuda" are the GPU of the
            process's number on its machine.

    Raises:
        InputError: the processes cannot be joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    chosen = choose_device(device)
    try:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_TIMEOUT)
        world = World(distributed.get_rank(), size)
        world.any(True)  # all have joined, so none is cut off by another's error
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE is {size}, but the processes cannot be joined ({_first_line(error)}); "
            "start them by torchrun"
        ) from error
    yield world
    # It ends gloo's threads: one may hold a tensor that takes the interpreter to free. Not after an
    # error: the others may be gone, and NCCL would wait for them.
    distributed.destroy_process_group()


@contextmanager
def _others_needed(world: World) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"process {world.rank} of {world.size} lost another one, which ended or does not "
            f"answer ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
