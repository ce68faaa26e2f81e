"""The dense CRF loss: pixels that a bilateral kernel joins should have like labels."""

from __future__ import annotations

from torch import Tensor

from deepcrf_ext.ops._autocast import accumulate_dtype, result_dtype
from deepcrf_ext.ops._data_dependent import in_one_graph
from deepcrf_ext.ops._loss_arguments import (
    checked_segmentation,
    num_pixels,
    sum_by_axes,
)
from deepcrf_ext.ops.dense_crf_lattices import (
    DenseCRFLattices,
    bilateral_lattices,
    check_lattices,
    check_widths,
)
from deepcrf_ext.ops.dense_crf_params import Width, checked_width
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice


@in_one_graph
def dense_crf_loss(
    probabilities: Tensor,
    image: Tensor,
    sxy: Width = 80,
    srgb: Width = 13,
    mask: Tensor | None = None,
    lattices: DenseCRFLattices | None = None,
) -> Tensor:
    """Reward like labels of all pairs of pixels that are near in position and colour.

        ``-(1 / P) Σ_images Σ_k S_kᵀ W S_k``

    W is the Gaussian kernel of ``positions / sxy`` and ``colours / srgb`` between all pixels of an
    image on the permutohedral lattice, as `permutohedral_filter` gives it, a pixel with itself
    included; S are the probabilities times the mask, P all pixels of the batch (Tang et al., "On
    Regularized Losses for Weakly-supervised CNN Segmentation", 2018): up to a constant the Potts
    energy of the dense CRF, a pixel. It is of the order of the number of pixels that the kernel
    joins, and its weight beside a cross entropy accordingly small.

    Costs a lattice an image, one filter forward and one of the transposed kernel backward (on the
    lattice W is not quite symmetric); time and memory are linear in pixels and labels (in
    channels: see `permutohedral_filter`).

    Args:
        probabilities: [B, K, *S], floating point. Differentiable, to any order.
        image: [B, C, *S], uint8 or floating point, in the units of ``srgb``. A constant, as are the
            widths: it gets no gradient.
        sxy: standard deviation of the kernel in pixels: a number, or one for each axis.
        srgb: and in colour: a number, or one for each channel.
        mask: what the probabilities are multiplied by, [B, *S] or [B, 1, *S], bool or of any real
            dtype; None for ones. No gradient.
        lattices: those of the same image and widths, where they are already built: for several
            losses of one image, or a loss beside `dense_crf`.

    Returns:
        A scalar in the dtype of ``probabilities``, as `torch.nn.functional.cross_entropy` has it;
        under `torch.autocast` at least float32. float64 is filtered in float64, others in float32.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Warns:
        UserWarning: as `gated_crf_loss`.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> logits = torch.randn(2, 4, 24, 32, requires_grad=True)
        >>> image = torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)
        >>> dc.dense_crf_loss(logits.softmax(1), image).backward()
    """
    mask = checked_segmentation(probabilities, image, mask)
    sxy, srgb = checked_width("sxy", sxy), checked_width("srgb", srgb)
    check_widths(image, {"sxy": sxy, "srgb": srgb})
    if lattices is None:
        bilateral = bilateral_lattices(image, sxy, srgb, "sxy, srgb")
    else:
        check_lattices(lattices, image, sxy, srgb)
        bilateral = lattices.bilateral
    values = probabilities.to(accumulate_dtype(probabilities.dtype))
    if mask is not None:
        values = values * mask[:, None].to(values.dtype)
    total = values[:0].sum()  # 0, with a gradient even where there is no image
    for one, lattice in zip(values, bilateral, strict=True):
        total = total + _likeness(one.movedim(0, -1), lattice)
    loss = -total / num_pixels(probabilities)
    return loss.to(result_dtype(probabilities.dtype, probabilities.device))


def _likeness(values: Tensor, lattice: PermutohedralLattice) -> Tensor:
    """``Σ_k S_kᵀ W S_k`` of values [*S, K]."""
    rows = values.flatten(0, -2)
    return sum_by_axes((rows * lattice.filter(rows)).view(values.shape))
