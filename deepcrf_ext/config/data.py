"""Settings of data: where images and labels are, and how training sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepcrf_ext.errors import InputError


@dataclass
class DataSource:
    """Where images and labels come from, and what the labels mean.

    All but dataset and root describe data of one's own, --data.dataset folder; split_file is also
    for voc.

    Args:
        dataset: "folder" is one's own images and masks; "scenes" is rendered on the fly and needs
            no files; "camvid" and "voc" are read as they are distributed.
        root: Folder of the data set.
        images: Pattern of the paths of images below the root. {split} is the split, {name} the name
            of an image, * and ? stand for parts of a file name, ** for any folders. Null is
            images/{split}/**, or images/** beside a split_file.
        masks: Pattern of the paths of masks, such as masks/{split}/{name}_L.png. A mask belongs to
            the image of the same name. Null is masks/{split}/**, or masks/** beside a split_file.
        split_file: File of the images of a split, such as lists/{split}.txt, below the root or
            anywhere. A line is the name of an image, or an image and its mask as paths below the
            root: /JPEGImages/X.jpg /SegmentationClassAug/X.png.
        classes: Names in the order of their indices, [background, crack]; names with colours; or a
            file of either: one a line, YAML or JSON. Null takes the classes that labels names.
        labels: The class of each value, range of values or colour in the masks, {0: background,
            128..255: crack, '#c8140a': ball}, or ignore, or the indices of a range, {0: ignore,
            1..150: 0..149}; camvid-colours or voc-colours; or a YAML or JSON file. Null is for
            masks of class indices, 255 for ignored pixels, or of the classes' colours.
        palette_masks: Whether masks with a palette mean its indices or its colours.
    """

    dataset: str = "scenes"
    root: Path | None = None
    images: str | None = None
    masks: str | None = None
    split_file: str | None = None
    classes: Any = None  # what these two may be is checked in data.class_lists, data.label_maps
    labels: Any = None
    palette_masks: Literal["indices", "colours"] = "indices"


@dataclass
class DataConfig(DataSource):
    """Images and how training sees them.

    Args:
        train_split: Split that training reads ("train_aug" is VOC with the SBD annotations).
        val_split: Split that is measured while training.
        crop: Height and width of the random crop, in pixels. Null takes whole images, which must
            then all have one size.
        flip: Mirror half of the training images.
        scale_range: Smallest and largest factor of the random resize before the crop. Null leaves
            sizes as they are.
        jitter: Brightness, contrast and saturation of each training image change at random by up to
            this share (0.4: factors of 0.6 to 1.4).
        hue: Its hue turns at random by up to this share of the circle of colours, at most 0.5.
        workers: Processes that read images beside the training process; 0 reads them in it.
    """

    train_split: str = "train"
    val_split: str = "val"
    crop: tuple[int, int] | None = (96, 128)
    flip: bool = True
    scale_range: tuple[float, float] | None = (0.8, 1.25)
    jitter: float = 0.0
    hue: float = 0.0
    workers: int = 0

    def __post_init__(self) -> None:
        if self.crop is not None and min(self.crop) < 1:
            raise InputError(f"data.crop: got {self.crop}, must be two positive sizes")
        if self.scale_range is not None and not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise InputError(
                f"data.scale_range: got {self.scale_range}, must be positive and in ascending order"
            )
        if not 0 <= self.jitter < 1:
            raise InputError(f"data.jitter: got {self.jitter}, must be at least 0 and below 1")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"data.hue: got {self.hue}, must be 0 to 0.5")
        if self.workers < 0:
            raise InputError(f"data.workers: got {self.workers}, must not be negative")
