"""Data sets, image files and training transforms."""

from __future__ import annotations

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.camvid import CamVid
from deepcrf_ext.data.file_checks import check_files, refuse_bad_files
from deepcrf_ext.data.folder import FolderDataset
from deepcrf_ext.data.images import read_image, read_labels, shrink, write_labels
from deepcrf_ext.data.labelled_pairs import LabelledPairs
from deepcrf_ext.data.registry import DATASETS, open_dataset, register_dataset
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.data.transforms import TrainTransform, to_tensors
from deepcrf_ext.data.voc import Voc

__all__ = [
    "DATASETS",
    "CamVid",
    "FolderDataset",
    "LabelledPairs",
    "Sample",
    "Scenes",
    "SegmentationDataset",
    "TrainTransform",
    "Voc",
    "check_files",
    "open_dataset",
    "read_image",
    "read_labels",
    "refuse_bad_files",
    "register_dataset",
    "shrink",
    "to_tensors",
    "write_labels",
]
