"""The deep CRF and its networks."""

from deepcrf_ext.models.deep_crf import VARIANTS, CRFEnergies, DeepCRF, Variant

__all__ = ["VARIANTS", "CRFEnergies", "DeepCRF", "Variant"]
