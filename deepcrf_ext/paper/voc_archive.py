"""Predictions of VOC 2012 in the form that its evaluation server takes."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

from deepcrf_ext.constants import Amp
from deepcrf_ext.data import SegmentationDataset, write_labels
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.progress import progress


def write_archive(
    model: DeepCRF,
    variant: Variant,
    dataset: SegmentationDataset,
    folder: str,
    path: Path,
    views: Views,
    amp: Amp,
    dense_crf: DenseCRFSettings | None,
) -> None:
    """Segments every image of a data set into a .tgz of palette PNGs.

    Args:
        model: in eval mode, on the device to use.
        variant: the potentials to use.
        dataset: its images; labels are not looked at.
        folder: where the PNGs lie in the archive.
        path: the archive; an earlier file stays whole until the new one is complete.
        views, amp, dense_crf: as in `predict_image`.

    Raises:
        InputError: an image cannot be read.
        OSError: the archive cannot be written.
    """
    palette = voc_palette(256)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        picture, archive = Path(temporary) / "labels.png", Path(temporary) / "archive"
        with tarfile.open(archive, "w:gz") as tar:
            for index in progress(range(len(dataset)), len(dataset), "segment", "image"):
                sample = dataset[index]
                labels = predict_image(
                    model, sample.image, variant, None, amp, dense_crf, views=views
                ).labels
                write_labels(picture, labels, palette)
                tar.add(picture, f"{folder}/{sample.name}.png")
        os.replace(archive, path)
