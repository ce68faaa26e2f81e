"""The deep CRF and its networks."""

from deepcrf_ext.models.deep_crf import ROWS, CRFEnergies, DeepCRF, Row

__all__ = ["ROWS", "CRFEnergies", "DeepCRF", "Row"]
