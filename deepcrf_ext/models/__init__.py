"""The deep CRF and its networks."""

from deepcrf_ext.models.deep_crf import DeepCRF
from deepcrf_ext.models.potential_nets import CRFEnergies
from deepcrf_ext.models.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "CRFEnergies", "DeepCRF", "Variant"]
