"""Deep structured CRFs: conditional random fields whose unary and pairwise energies are networks.

An implementation of Lin, Shen, Reid and van den Hengel, "Efficient Piecewise Training of Deep
Structured Models for Semantic Segmentation" (arXiv:1504.01013v2), over compiled CPU and CUDA
operators. `deepcrf_ext.reference` holds the same operators in plain PyTorch.
"""

from typing import TYPE_CHECKING, Any

from deepcrf_ext.libraries import end_in_one_line

end_in_one_line()  # before torch is loaded, which takes seconds in which Ctrl-C may come

from deepcrf_ext import reference
from deepcrf_ext.errors import InputError
from deepcrf_ext.ops.dense_crf import dense_crf
from deepcrf_ext.ops.dense_crf_lattices import DenseCRFLattices
from deepcrf_ext.ops.dense_crf_loss import dense_crf_loss
from deepcrf_ext.ops.dense_crf_params import (
    DenseCRFParams,
    unary_from_labels,
    unary_from_probabilities,
)
from deepcrf_ext.ops.gated_crf_loss import gated_crf_loss
from deepcrf_ext.ops.graph import EdgeGraph, RangeBox
from deepcrf_ext.ops.mean_field import mean_field
from deepcrf_ext.ops.pairwise_messages import pairwise_messages
from deepcrf_ext.ops.pairwise_nll import pairwise_nll
from deepcrf_ext.ops.permutohedral_filter import PermutohedralLattice, permutohedral_filter
from deepcrf_ext.ops.potentials import FactoredPotential, TablePotential
from deepcrf_ext.ops.pseudo_likelihood import pseudo_likelihood_nll

if TYPE_CHECKING:
    from deepcrf_ext import nn
    from deepcrf_ext.models import DeepCRF

__version__ = "0.1.0"

__all__ = [
    "DeepCRF",
    "DenseCRFLattices",
    "DenseCRFParams",
    "EdgeGraph",
    "FactoredPotential",
    "InputError",
    "PermutohedralLattice",
    "RangeBox",
    "TablePotential",
    "dense_crf",
    "dense_crf_loss",
    "gated_crf_loss",
    "mean_field",
    "nn",
    "pairwise_messages",
    "pairwise_nll",
    "permutohedral_filter",
    "pseudo_likelihood_nll",
    "reference",
    "unary_from_labels",
    "unary_from_probabilities",
]


def __getattr__(name: str) -> Any:
    """The networks and layers, which are imported at their first use."""
    import importlib

    if name == "DeepCRF":
        return importlib.import_module("deepcrf_ext.models").DeepCRF
    if name == "nn":
        return importlib.import_module("deepcrf_ext.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
