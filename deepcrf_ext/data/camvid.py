"""CamVid in the SegNet split: 480x360 road scenes with 11 classes and void."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepcrf_ext.data.base import FileDataset, LabelledFile, listed, require_folder
from deepcrf_ext.data.file_patterns import visible
from deepcrf_ext.data.images import read_labels
from deepcrf_ext.errors import InputError

VOID = 11
COLOURS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


class CamVid(FileDataset):
    """The folders `<split>/*.jpg` or `*.png` and `<split>annot/*.png`, for train, val and test.

    Label files hold class indices; void (11) becomes 255, the ignored label.

    Raises:
        InputError: a folder is missing or empty, or images have no label file; unless it is
            `strict`, these are left out and named in `problems`.
    """

    def __init__(self, root: Path, split: str, strict: bool = True) -> None:
        require_folder(root, "the root of CamVid, holding train/, trainannot/ and so on")
        image_folder = require_folder(root / split, f"the folder of {split} images")
        label_folder = require_folder(root / f"{split}annot", f"the folder of {split} labels")
        images = [p for p in visible(image_folder) if p.suffix.lower() in (".jpg", ".png")]
        if not images:
            raise InputError(f"{image_folder}: holds no image; must hold .jpg or .png files")
        label_names = {path.name for path in label_folder.iterdir()}
        labelled = [image for image in images if f"{image.stem}.png" in label_names]
        self.problems = [
            f"{image}: image without label; {label_folder / image.stem}.png does not exist"
            for image in images
            if f"{image.stem}.png" not in label_names
        ]
        if strict and self.problems:
            raise InputError(listed(self.problems))
        super().__init__(
            [LabelledFile(p.stem, p, label_folder / f"{p.stem}.png") for p in labelled],
            tuple(COLOURS),
            np.array(list(COLOURS.values()), np.uint8),
        )

    def decode_labels(self, path: Path) -> np.ndarray:
        """Read one label file as uint8 [H, W], with void as 255."""
        labels = read_labels(path)
        labels[labels == VOID] = self.ignore_index
        return labels
