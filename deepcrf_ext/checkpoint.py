"""The earlier place of `deepcrf_ext.records.checkpoint.load_model`."""

from deepcrf_ext.records.checkpoint import load_model

__all__ = ["load_model"]
