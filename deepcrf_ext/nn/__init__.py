"""Layers and losses over the operators, for any network: logits in, log-probabilities out."""

from deepcrf_ext.nn.calibration import Calibration
from deepcrf_ext.nn.crf_losses import DenseCRFLoss, GatedCRFLoss
from deepcrf_ext.nn.dense_crf import DenseCRF
from deepcrf_ext.nn.pairwise_crf import PairwiseCRF
from deepcrf_ext.nn.pairwise_potential import PairwisePotential
from deepcrf_ext.nn.relations import RelationConfig

__all__ = [
    "Calibration",
    "DenseCRF",
    "DenseCRFLoss",
    "GatedCRFLoss",
    "PairwiseCRF",
    "PairwisePotential",
    "RelationConfig",
]
