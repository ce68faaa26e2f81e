"""Layers over the operators."""

from deepcrf_ext.nn.dense_crf import DenseCRF

__all__ = ["DenseCRF"]
