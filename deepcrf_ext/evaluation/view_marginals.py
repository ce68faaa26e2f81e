"""What a model makes of the views of an image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepcrf_ext.constants import Amp
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.view_statistics import view_statistics
from deepcrf_ext.evaluation.views import Views, average_views, join_windows
from deepcrf_ext.models import CRFEnergies, DeepCRF, Variant
from deepcrf_ext.nn.grid_graphs import GraphMemoryError
from deepcrf_ext.nn.node_losses import node_labels
from deepcrf_ext.parallel.device import autocast


def view_marginals(
    model: DeepCRF,
    image: npt.NDArray[np.uint8],
    variants: Mapping[str, Variant],
    views: Views,
    amp: Amp = None,
    seconds: dict[str, float] | None = None,
) -> dict[str, Tensor]:
    """Marginals of an image by each of several variants, the mean over all views.

    Args:
        model: in eval mode; its networks run once a view for all variants.
        image: uint8 [H, W, 3], RGB.
        variants: by name. A dense CRF of theirs is not part of it.
        views: how the networks see the image.
        amp: the precision of the convolutions, as of `TrainConfig.amp`.
        seconds: the time is added to its "networks" and to what it has under the variants' names.

    Returns float32 [K, h, w] on the grid of nodes of the largest view, by name.
    """
    spent = {} if seconds is None else seconds
    names = dict.fromkeys(name for variant in variants.values() for name in variant.potentials)
    of_views: dict[str, list[Tensor]] = {name: [] for name in variants}
    with view_statistics(model, views.batch_statistics):
        for view in views.of(image, model.device):
            windows = views.windows(view)
            of_windows: dict[str, list[Tensor]] = {name: [] for name in variants}
            for window in windows:
                start = now(model.device)
                energies = _energies(model, window.of(view.images), names, amp)
                start = _add_time(spent, "networks", start, model.device)
                for name, variant in variants.items():
                    of_windows[name].append(model.marginals(energies, variant))
                    start = _add_time(spent, name, start, model.device)
            size = (view.images.shape[2], view.images.shape[3])
            for name, parts in of_windows.items():
                of_views[name].append(view.upright(join_windows(parts, windows, size)))
    return {name: average_views(parts)[0] for name, parts in of_views.items()}


def view_energies(
    model: DeepCRF,
    image: npt.NDArray[np.uint8],
    labels: Tensor,
    names: Iterable[str],
    views: Views,
    amp: Amp = None,
) -> Iterator[tuple[CRFEnergies, Tensor]]:
    """Energies of the named potentials in every window of every view, with the labels of the nodes.

    Args:
        model, image, views, amp: as of `view_marginals`.
        labels: int64 [H, W], 255 = ignore.

    Yields energies of [1, h, w] nodes and int64 [h · w].
    """
    names = tuple(names)
    with view_statistics(model, views.batch_statistics):
        for view in views.of(image, model.device):
            seen = view.labels(labels)
            for window in views.windows(view):
                energies = _energies(model, window.of(view.images), names, amp)
                nodes = node_labels(window.of(seen)[None], energies.grid[1:])
                yield energies, nodes.to(model.device)


def _energies(model: DeepCRF, images: Tensor, names: Iterable[str], amp: Amp) -> CRFEnergies:
    """`DeepCRF.energies`; what is too large for it is told with what makes it smaller."""
    try:
        with autocast(model.device, amp):
            return model.energies(images, names)
    except (GraphMemoryError, MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        height, width = images.shape[2:]
        reason = next(iter(str(error).splitlines()), "out of memory")
        raise InputError(
            f"an image of {width}x{height} pixels is too large to be seen whole: {reason}; or show "
            "it smaller (--max-size) or in parts (--window)"
        ) from error


def _is_of_memory(error: Exception) -> bool:
    """Whether there was no memory, on any device."""
    of_memory = isinstance(error, (GraphMemoryError, MemoryError, torch.OutOfMemoryError))
    return of_memory or "DefaultCPUAllocator" in str(error)


def _add_time(seconds: dict[str, float], name: str, start: float, device: torch.device) -> float:
    """Adds what has passed since `start`; returns the time that it is."""
    end = now(device)
    seconds[name] = seconds.get(name, 0.0) + end - start
    return end


def now(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
