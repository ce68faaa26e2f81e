"""The dense CRF behind a model's marginals: its settings as files hold them, and the step from the
grid of nodes to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepcrf_ext.errors import InputError
from deepcrf_ext.ops._number_checks import checked_iterations
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.ops.dense_crf_lattices import DenseCRFLattices, check_image
from deepcrf_ext.ops.dense_crf_params import (
    PRESETS,
    WEIGHTS,
    WIDTHS,
    DenseCRFParams,
    unary_from_probabilities,
)
from deepcrf_ext.settings_files import parse_yaml

NUMBERS = tuple(f.name for f in fields(DenseCRFParams) if f.name in (*WIDTHS, *WEIGHTS))
"""The parameters that options and files hold as numbers; beside them "normalisation"."""
_PHOTOGRAPH = torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device="cpu")
"""Of the axes and channels that settings in files are for."""


@dataclass(frozen=True)
class DenseCRFSettings:
    """Parameters of a dense CRF and the number of its mean-field iterations."""

    params: DenseCRFParams = field(default_factory=DenseCRFParams)
    iterations: int = 10

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any]) -> DenseCRFSettings:
        """The settings of a preset by its name, of a YAML or JSON file, or of a mapping.

        File and mapping hold some of `NUMBERS` and "iterations"; what they leave out has the
        defaults. Raises InputError naming the source and what does not fit in it.
        """
        if isinstance(source, Mapping):
            return cls._of_mapping(source, "dense CRF")
        if str(source) in PRESETS:
            return cls(PRESETS[str(source)])
        path = Path(source)
        if not path.is_file():
            raise InputError(
                f"dense CRF: {source} is neither a file nor one of {', '.join(PRESETS)}"
            )
        values = parse_yaml(path)
        if not isinstance(values, Mapping):
            raise InputError(f"{path}: must hold some of {', '.join(NUMBERS)}, iterations")
        return cls._of_mapping(values, str(path))

    @classmethod
    def _of_mapping(cls, values: Mapping[str, Any], source: str) -> DenseCRFSettings:
        given = dict(values)
        iterations = given.pop("iterations", cls.iterations)
        known = (*NUMBERS, "normalisation")
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise InputError(
                f"{source}: {unknown[0]!r} is unknown, must be one of "
                f"{', '.join((*known, 'iterations'))}"
            )
        try:
            settings = cls(DenseCRFParams(**given), iterations)
            check_image(_PHOTOGRAPH, settings.params, {})
            return settings
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: {error}") from error

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError naming what does not fit."""
        iterations = checked_iterations(self.iterations)
        object.__setattr__(self, "iterations", iterations)

    def as_dict(self) -> dict[str, Any]:
        """What `read` takes back where no weight is a matrix; without a compatibility. Only Python
        code sets these."""
        values = {name: _plain(getattr(self.params, name)) for name in NUMBERS}
        values["iterations"] = self.iterations
        if self.params.normalisation != DenseCRFParams.normalisation:
            values["normalisation"] = self.params.normalisation
        return values


def _plain(value: Any) -> Any:
    """A width or a weight as JSON has it: a number, or a list of them."""
    if isinstance(value, Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def refine(marginals: Tensor, image: Tensor, settings: DenseCRFSettings | None = None) -> Tensor:
    """Marginals of pixels by a dense CRF, from marginals of nodes: the paper's last step.

    The unary energies are -log of the marginals, at least 1e-5, upsampled bilinearly.

    Args:
        marginals: float [B, K, h, w] on a grid over the whole image.
        image: RGB in 0..255, [B, 3, H, W], uint8 or floating point.
        settings: None for the defaults.

    Returns:
        [B, K, H, W] in the dtype of the marginals.

    Raises:
        InputError: a kernel is too narrow for an image of this size.
        TypeError, ValueError: a tensor does not fit; the message names it.
    """
    settings = DenseCRFSettings() if settings is None else settings
    size = (image.shape[2], image.shape[3])
    upsampled = functional.interpolate(marginals, size, mode="bilinear", align_corners=False)
    unary = unary_from_probabilities(upsampled)
    lattices = build_lattices(image, settings.params)
    return dense_crf(unary, image, settings.params, settings.iterations, lattices)


def build_lattices(image: Tensor, params: DenseCRFParams) -> DenseCRFLattices:
    """`DenseCRFLattices.build` for parameters that a user chose: raises InputError if they are too
    narrow for the image."""
    try:
        return DenseCRFLattices.build(image, params)
    except ValueError as error:
        raise InputError(f"dense CRF: {error}") from error
