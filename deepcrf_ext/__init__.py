"""Deep structured CRFs: conditional random fields whose unary and pairwise energies are networks.

An implementation of Lin, Shen, Reid and van den Hengel, "Efficient Piecewise Training of Deep
Structured Models for Semantic Segmentation" (arXiv:1504.01013v2), over compiled CPU and CUDA
operators. `deepcrf_ext.reference` holds the same operators in plain PyTorch.
"""

from deepcrf_ext import reference
from deepcrf_ext.errors import InputError
from deepcrf_ext.graph import EdgeGraph, RangeBox
from deepcrf_ext.ops.mean_field import mean_field
from deepcrf_ext.ops.pairwise_messages import pairwise_messages
from deepcrf_ext.ops.pairwise_nll import pairwise_nll
from deepcrf_ext.ops.pseudo_likelihood import pseudo_likelihood_nll
from deepcrf_ext.potentials import FactoredPotential, TablePotential

__version__ = "0.1.0"

__all__ = [
    "EdgeGraph",
    "FactoredPotential",
    "InputError",
    "RangeBox",
    "TablePotential",
    "mean_field",
    "pairwise_messages",
    "pairwise_nll",
    "pseudo_likelihood_nll",
    "reference",
]
