"""The public functions in plain PyTorch: slow, materialised, differentiable by autograd.

They define what the operators compute. Every floating-point dtype and device is accepted, and the
work is done in the dtype of the arguments.
"""

from deepcrf_ext.reference.dense_crf import dense_crf
from deepcrf_ext.reference.dense_crf_loss import dense_crf_loss
from deepcrf_ext.reference.gated_crf_loss import gated_crf_loss
from deepcrf_ext.reference.mean_field import mean_field
from deepcrf_ext.reference.pairwise_messages import pairwise_messages
from deepcrf_ext.reference.pairwise_nll import pairwise_nll
from deepcrf_ext.reference.permutohedral_filter import gaussian_filter, permutohedral_filter
from deepcrf_ext.reference.pseudo_likelihood import pseudo_likelihood_nll
from deepcrf_ext.reference.range_box_edges import range_box_edges

__all__ = [
    "dense_crf",
    "dense_crf_loss",
    "gated_crf_loss",
    "gaussian_filter",
    "mean_field",
    "pairwise_messages",
    "pairwise_nll",
    "permutohedral_filter",
    "pseudo_likelihood_nll",
    "range_box_edges",
]
