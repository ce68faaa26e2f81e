"""The deep CRF and its networks."""

from deepcrf_ext.models.deep_crf import CRFEnergies, DeepCRF
from deepcrf_ext.models.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "CRFEnergies", "DeepCRF", "Variant"]
