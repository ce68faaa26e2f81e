"""What the dense CRF makes of images: the features of its two kernels, and their lattices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.ops import _backend
from deepcrf_ext.ops._device_cache import DeviceCache, keep_for_stream, wait_until_written
from deepcrf_ext.ops._func_transforms import wants_gradient
from deepcrf_ext.ops._image_checks import check_image_tensor, check_range
from deepcrf_ext.ops._tensor_checks import are_seen, check_device
from deepcrf_ext.ops.dense_crf_params import WIDTHS, DenseCRFParams, Width
from deepcrf_ext.ops.permutohedral_filter import LATTICE_BYTES, MAX_DIMS, PermutohedralLattice


@dataclass(frozen=True)
class DenseCRFLattices:
    """The lattices of a batch of images for some kernel widths, reusable over calls of `dense_crf`.

    Once built they may be read on any CUDA stream, and while a CUDA graph is captured. `gaussian`
    is shared by the images of the batch, `bilateral` holds one lattice an image. They hold numbers
    alone: gradients in an image or a width go through what `dense_crf` is given.

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> image = torch.randint(256, (1, 3, 24, 32), dtype=torch.uint8)
        >>> lattices = dc.DenseCRFLattices.build(image, dc.DenseCRFParams())
        >>> marginals = torch.rand(1, 2, 24, 32).softmax(1)
        >>> for _ in range(3):  # as a network in training gives others every time
        ...     marginals = dc.dense_crf(-marginals.log(), image, lattices=lattices)
    """

    shape: torch.Size
    widths: tuple[Width, Width, Width]
    gaussian: PermutohedralLattice
    bilateral: tuple[PermutohedralLattice, ...]

    @classmethod
    def build(cls, image: Tensor, params: DenseCRFParams) -> DenseCRFLattices:
        """The lattices of images [B, C, *S], as `dense_crf` takes them.

        Raises:
            TypeError, ValueError: the image does not fit, or a kernel is too narrow for its size.
        """
        check_image(image, params, {})
        built = cls.of_checked(image, params)
        with torch.no_grad():
            for lattice in (built.gaussian, *built.bilateral):
                lattice.keep_norms()
        wait_until_written(image.device)
        return built

    @classmethod
    def of_checked(cls, image: Tensor, params: DenseCRFParams) -> DenseCRFLattices:
        """As `build`, of an image that `check_image` has seen."""
        widths = _widths(params)
        gaussian = _gaussian_lattice(image, widths[0])
        return cls(image.shape, widths, gaussian, bilateral_lattices(image, *widths[1:]))

    def differentiable_in(self, image: Tensor, params: DenseCRFParams) -> DenseCRFLattices:
        """These lattices with gradients in those of the image and the widths that want one."""
        gaussian, bilateral = self.gaussian, self.bilateral
        if wants_gradient(params.gaussian_sxy):
            positions = gaussian_features(image.shape[2:], params.gaussian_sxy, image.device)
            gaussian = gaussian.differentiable_in(positions)
        if wants_gradient(image, params.bilateral_sxy, params.bilateral_srgb):
            # Positions come first; where they are given, colours alone get a gradient.
            first = 0 if wants_gradient(params.bilateral_sxy) else image.dim() - 2
            bilateral = tuple(
                lattice.differentiable_in(
                    bilateral_features(one, params.bilateral_sxy, params.bilateral_srgb)[first:]
                )
                for lattice, one in zip(bilateral, image, strict=True)
            )
        return DenseCRFLattices(self.shape, self.widths, gaussian, bilateral)


def check_lattices(lattices: Any, image: Tensor, *widths: Width) -> None:
    """Check that these are lattices, of such an image and widths, and keep them for the stream.

    widths: those of `WIDTHS`, or of the bilateral kernel alone.
    """
    if not isinstance(lattices, DenseCRFLattices):
        raise TypeError(f"lattices: got {type(lattices).__name__}, must be a DenseCRFLattices")
    own = lattices.widths[-len(widths) :]
    if lattices.shape != image.shape or not all(map(_is_same, own, widths)):
        raise ValueError(
            f"lattices: got those of image {list(lattices.shape)} and widths {own}, "
            f"must be of {list(image.shape)} and {widths}"
        )
    check_device("lattices", lattices.gaussian.device, image.device, "image")
    for lattice in (lattices.gaussian, *lattices.bilateral):
        keep_for_stream(lattice.kept_tensors())


_GAUSSIAN_LATTICES: DeviceCache[PermutohedralLattice] = DeviceCache(
    256 << 20, PermutohedralLattice.kept_tensors
)


def _gaussian_lattice(image: Tensor, sxy: Width) -> PermutohedralLattice:
    """The lattice of the positions of images [B, C, *S], without gradients.

    It is the same for all images of a size: kept for the next call, but not where it alone would
    fill the cache, nor where the width is a tensor, nor in code that is traced.
    """
    shape, device = image.shape[2:], image.device

    def build() -> PermutohedralLattice:
        return _lattice("gaussian_sxy", gaussian_features(shape, sxy, device))

    def build_to_keep() -> PermutohedralLattice:
        lattice = build()
        lattice.keep_norms()
        return lattice

    if isinstance(sxy, Tensor) or torch.compiler.is_compiling() or type(image) is not Tensor:
        return build()
    if LATTICE_BYTES * (len(shape) + 1) * shape.numel() > _GAUSSIAN_LATTICES.max_bytes:
        return build()
    key = (shape, sxy, device, _backend.uses_cuda_kernels(image))
    return _GAUSSIAN_LATTICES.get_or_build(key, device, build_to_keep)


def bilateral_lattices(
    image: Tensor, sxy: Width, srgb: Width, names: str = "bilateral_sxy, bilateral_srgb"
) -> tuple[PermutohedralLattice, ...]:
    """The lattice of the positions and colours of each of images [B, C, *S], without gradients.

    names: of the arguments that give the widths.
    """
    # Not by `torch.no_grad`, with which a saved export cannot be loaded.
    sxy, srgb = (width.detach() if isinstance(width, Tensor) else width for width in (sxy, srgb))
    return tuple(_lattice(names, bilateral_features(one, sxy, srgb)) for one in image.detach())


def _lattice(widths: str, planes: Tensor) -> PermutohedralLattice:
    try:
        return PermutohedralLattice.from_planes(planes)
    except ValueError as error:
        raise ValueError(f"{widths}: {error}") from error


def _widths(params: DenseCRFParams) -> tuple[Width, Width, Width]:
    """The widths as numbers, or as detached tensors."""
    gaussian_sxy, bilateral_sxy, bilateral_srgb = (
        width.detach().clone() if isinstance(width, Tensor) else width
        for width in (getattr(params, name) for name in WIDTHS)
    )
    return gaussian_sxy, bilateral_sxy, bilateral_srgb


def _is_same(own: Width, other: Width) -> bool:
    """Whether two widths are equal, as far as one may look."""
    if not isinstance(own, Tensor) and not isinstance(other, Tensor):
        return own == other
    own, other = (
        width if isinstance(width, Tensor) else torch.tensor(width, device="cpu")
        for width in (own, other)
    )
    if not (are_seen(own) and are_seen(other)):
        return True
    return torch.equal(own.float(), other.float())


def check_image(image: Any, params: DenseCRFParams, sizes: dict[str, int]) -> None:
    """Check images [B, C, *S], uint8 or floating point, for kernels of such widths."""
    check_image_tensor(image, sizes)
    check_widths(image, {name: getattr(params, name) for name in WIDTHS})


def check_widths(image: Tensor, widths: Mapping[str, Width]) -> None:
    """Check that widths fit images [B, C, *S]: by name, those that end in "srgb" of colours and
    the others of positions."""
    axes, channels = image.dim() - 2, image.shape[1]
    if axes + channels > MAX_DIMS:
        raise ValueError(
            f"image: got {channels} channels, must be at most {MAX_DIMS - axes} beside {axes} axes"
        )
    pixels, most = math.prod(image.shape[2:]), (2**31 - 1) // (axes + channels + 1)
    if not torch.compiler.is_compiling() and pixels > most:  # sizes of a graph have no such bound
        raise ValueError(
            f"image: got {pixels} pixels, must be at most {most} of {channels} channels; take a "
            "larger one in parts"
        )
    for name, width in widths.items():
        of_colours = name.endswith("srgb")
        count, unit = (channels, "channel") if of_colours else (axes, "axis")
        given = len(width) if isinstance(width, Sequence) else None
        if isinstance(width, Tensor):
            check_device(name, width.device, image.device, "image")
            given = width.shape[0] if width.dim() == 1 else None
        if given not in (None, count):
            raise ValueError(
                f"{name}: got {given} widths, must be one number or {count}, one for each {unit}"
            )
        if of_colours:
            check_range(image, name, width)


def gaussian_features(shape: Sequence[int], sxy: Width, device: torch.device) -> Tensor:
    """Positions in a grid of this shape in units of `sxy`: float32 [S, N], N positions.

    Two axes come as x, y, other numbers of axes in their own order. The filter depends a little on
    the order of its features, and these are the orders of pydensecrf: of its DenseCRF2D, and of its
    utils, by which volumes are made.
    """
    axes = len(shape)
    width = _divisors(sxy, axes, device)
    planes = []
    for axis, size in enumerate(shape):
        steps = torch.arange(size, dtype=torch.float32, device=device) / width[axis]
        planes.append(steps.view(-1, *[1] * (axes - 1 - axis)).expand(*shape))
    return torch.stack(planes[::-1] if axes == 2 else planes).flatten(1)


def bilateral_features(image: Tensor, sxy: Width, srgb: Width) -> Tensor:
    """Positions over `sxy`, then channels over `srgb`: [C, *S] -> float32 [S + C, N]."""
    positions = gaussian_features(image.shape[1:], sxy, image.device)
    width = _divisors(srgb, image.shape[0], image.device)
    return torch.cat([positions, image.to(torch.float32).flatten(1) / width[:, None]])


def _divisors(width: Width, count: int, device: torch.device) -> Tensor:
    """A width as float32 [count]."""
    if isinstance(width, Tensor):
        return width.to(torch.float32).expand(count)
    # Tensors filled on the device: nothing is copied to it. Dividing by a number may multiply by
    # its rounded reciprocal; by a tensor it does not.
    numbers = width if isinstance(width, Sequence) else [width]
    filled = [torch.full((1,), n, dtype=torch.float32, device=device) for n in numbers]
    return torch.cat(filled).expand(count)
