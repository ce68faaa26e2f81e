"""From the marginals of nodes to the labels of pixels, and from an image to its labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.constants import Amp
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.view_marginals import view_marginals
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.models.refine_tiles import MEMORY, energies_of, refine_labels, refine_parts
from deepcrf_ext.models.upsampling import upsample_part
from deepcrf_ext.nn.grid_graphs import graph_bytes


@dataclass(frozen=True)
class Pixels:
    """What marginals say of every pixel of an image.

    labels: uint8 [H, W], the likeliest label, the lowest index of equals.
    confidence: float [H, W], the marginal of that label.
    truth: float [H, W], the marginal of the true label, 0 where there is none; None where the truth
        was not asked about.
    """

    labels: Tensor
    confidence: Tensor
    truth: Tensor | None = None


def upsample_labels(marginals: Tensor, size: tuple[int, int]) -> Tensor:
    """The likeliest label of every pixel, uint8 [H, W], from marginals on the node grid.

    marginals: float [K, h, w]. size: (H, W) of the image in pixels.
    """
    return _upsample(marginals, size, None).labels


def _upsample(marginals: Tensor, size: tuple[int, int], truth: Tensor | None) -> Pixels:
    """`Pixels` of bilinearly upsampled marginals [K, h, w].

    Only a few maps of full size exist at a time, whatever K is, so that large images fit in memory.
    """
    if len(marginals) == 0:
        raise ValueError("marginals: got no classes, must be [K, h, w] with K of at least 1")
    labels = torch.zeros(size, dtype=torch.uint8, device=marginals.device)
    best = marginals.new_full(size, -torch.inf)
    of_truth = None if truth is None else marginals.new_zeros(size)
    for index, plane in enumerate(marginals):
        full = functional.interpolate(
            plane[None, None], size, mode="bilinear", align_corners=False
        )[0, 0]
        labels[full > best] = index
        best = torch.maximum(best, full)
        if truth is not None and of_truth is not None:
            of_truth = torch.where(truth == index, full, of_truth)
    return Pixels(labels, best, of_truth)


def label_pixels(
    marginals: Tensor,
    image: Tensor,
    variant: Variant,
    dense_crf: DenseCRFSettings | None = None,
    truth: Tensor | None = None,
    memory: int = MEMORY,
) -> Pixels:
    """The labels of an image's pixels, after a dense CRF (`refine_parts`) if the variant has one.

    marginals: float32 [K, h, w], the variant's on the node grid. image: RGB in 0..255, [3, H, W],
    uint8 or float32. dense_crf: settings of the dense CRF (default: those of `DenseCRFSettings`).
    truth: true labels, integers [H, W], where their marginals are wanted too. memory: bytes for the
    dense CRF, about.
    """
    size = (image.shape[1], image.shape[2])
    if not variant.dense_crf:
        return _upsample(marginals, size, truth)
    settings = DenseCRFSettings() if dense_crf is None else dense_crf
    labels = torch.empty(size, dtype=torch.uint8, device=marginals.device)
    confidence = marginals.new_empty(size)
    of_truth = None if truth is None else marginals.new_empty(size)
    energies, device = energies_of(marginals, size), marginals.device
    parts = refine_parts(energies, image, len(marginals), settings, device, memory)
    for rows, columns, refined in parts:
        best = refined.max(0)
        confidence[rows, columns], labels[rows, columns] = best.values, best.indices
        if truth is not None and of_truth is not None:
            part = truth[rows, columns].to(refined.device)
            known = part < len(refined)
            found = refined.gather(0, part.where(known, 0)[None].long())[0]
            if refined.dtype == torch.float16:  # in which 0 is anything below
                found = found.clamp(min=2**-24)
            of_truth[rows, columns] = found * known
    return Pixels(labels, confidence, of_truth)


def label_large(
    marginals: Tensor,
    image: Tensor,
    dense_crf: DenseCRFSettings | None,
    memory: int,
) -> Tensor:
    """The labels of `label_pixels` for an image of any size, uint8 [H, W] on the CPU.

    An image that does not fit into the memory is done in parts. The marginals of a dense CRF then
    differ by some hundredths near the borders of the parts.

    marginals: float32 [K, h, w], on the device to use. image: uint8 [3, H, W], on the CPU.
    dense_crf: None to upsample alone. memory: bytes to use, about, beside image and labels.
    """
    size = (image.shape[1], image.shape[2])
    num_classes = len(marginals)
    if dense_crf is not None:
        energies = energies_of(marginals, size)
        return refine_labels(energies, image, num_classes, dense_crf, marginals.device, memory)
    if 12 * size[0] * size[1] <= memory:
        return upsample_labels(marginals, size).cpu()
    labels = torch.empty(size, dtype=torch.uint8, device="cpu")
    count = max(1, memory // (12 * (num_classes + 1) * size[1]))
    for top in range(0, size[0], count):
        rows = slice(top, min(top + count, size[0]))
        labels[rows] = upsample_part(marginals, size, rows, slice(0, size[1])).argmax(0).cpu()
    return labels


def named_variant(model: DeepCRF, name: str | None) -> Variant:
    """A variant of `DeepCRF.variants` by name, as the option --row gives it; None: the default.

    Raises InputError if the model does not have it.
    """
    if name is None:
        return model.default_variant()
    variants = model.variants()
    if name in variants:
        return variants[name]
    if name not in VARIANTS:
        known = ", ".join({**VARIANTS, **variants})
        raise InputError(f"row: got {name!r}, must be one of {known}")
    missing = [p for p in VARIANTS[name].potentials if p not in model.potential_names]
    raise InputError(
        f"row: {name!r} needs the potentials {', '.join(missing)}, which this checkpoint lacks; "
        f"it has the rows {', '.join(variants)}. Train with --model.potentials all, or "
        f"with {', '.join(missing)} in their list, for this row"
    )


@dataclass(frozen=True)
class Prediction:
    """labels: uint8 [H, W] of the image's size. marginals: float32 [K, h, w] on the node grid, of
    several views on that of the largest."""

    labels: npt.NDArray[np.uint8]
    marginals: npt.NDArray[np.float32]


def side_in_memory(
    model: DeepCRF, variant: Variant, size: tuple[int, int], max_size: int, memory: int
) -> int:
    """The longest side, in pixels, at most `max_size`, at which a variant's graphs fit in `memory`.

    size: (H, W) of the image at its own size. memory: bytes for the graphs of all relations.
    """
    side = min(max_size, max(size))
    while side > 1:
        grid = model.grid_size(*(max(1, round(length * side / max(size))) for length in size))
        boxes = [model.config.relations[name].box(*grid) for name in variant.relations]
        needed = sum(graph_bytes(box, 1, *grid) for box in boxes)
        if needed <= memory:
            break
        # Edges grow with the fourth power of the side.
        side = max(1, min(side - 1, int(side * (memory / needed) ** 0.25)))
    return side


@torch.inference_mode()
def predict_image(
    model: DeepCRF,
    image: npt.NDArray[np.uint8],
    variant: str | Variant,
    max_size: int | None = None,
    amp: Amp = None,
    dense_crf: DenseCRFSettings | None = None,
    memory: int = MEMORY,
    views: Views = ONE_VIEW,
) -> Prediction:
    """Segments one image of any size.

    image: uint8 [H, W, 3] RGB.
    variant: which potentials to use: a name of `DeepCRF.variants`, or a `Variant`.
    max_size: `Views.max_size`: longest side, in pixels, that the networks see; a larger image is
        shrunk for them and its labels grow back to its own size. None never shrinks: memory grows
        with the square of the number of pixels, since neighbourhoods are fractions of the image.
    amp: the precision of the convolutions, as of `TrainConfig.amp`.
    dense_crf: settings of a variant's dense CRF, which sees the image at its own size.
    memory: bytes to use, about, for what is done at the image's own size, which is done in parts
        that overlap where it would take more (see `label_large`).
    views: in which sizes, relative to what `max_size` leaves, in which windows and whether mirrored
        too the networks see the image; the marginals of all are averaged.
    Raises ValueError for another array or for both sizes, and InputError for a variant that the
    model does not have and for an image that is too large to be seen whole.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image: got {image.dtype} {list(image.shape)}, must be uint8 [H, W, 3], not empty"
        )
    image = np.ascontiguousarray(image)  # torch takes no negative strides
    whole = torch.from_numpy(image).permute(2, 0, 1)
    chosen = named_variant(model, variant) if isinstance(variant, str) else variant
    if max_size is not None:
        if views.max_size is not None:
            raise ValueError(f"max_size: got {max_size} beside that of views, must be given once")
        views = replace(views, max_size=max_size)
    marginals = view_marginals(model, image, {"": chosen}, views, amp)[""]
    crf = (dense_crf or DenseCRFSettings()) if chosen.dense_crf else None
    labels = label_large(marginals, whole, crf, memory)
    return Prediction(labels.numpy(), marginals.float().cpu().numpy())
