"""CamVid's layout, in miniature: pairing, void, and every kind of damage named in an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_data import write

from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training images (one a PNG) and one for val; labels hold every value 0..11."""
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for index, name in enumerate(("train/b.jpg", "train/a.png", "train/c.JPG", "val/v.png")):
        image = np.full((3, 4, 3), 40 * index + 40, np.uint8)
        path = write(tmp_path / name, image)
        write(path.parent.parent / f"{path.parent.name}annot" / f"{path.stem}.png", labels)
    return tmp_path


def test_samples_and_attributes(root: Path) -> None:
    dataset = open_dataset("camvid", root, "train")
    assert len(dataset) == 3
    assert [dataset[i].name for i in range(3)] == ["a", "b", "c"]
    sample = dataset[0]
    assert sample.image.dtype == sample.labels.dtype == np.uint8
    np.testing.assert_array_equal(sample.image, np.full((3, 4, 3), 80))
    np.testing.assert_array_equal(sample.labels.ravel(), [*range(11), 255])
    assert dataset.classes == CLASSES
    assert dataset.num_classes == 11
    assert dataset.palette.dtype == np.uint8
    assert dataset.palette.tolist() == [
        *([128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222]),
        *([128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192]),
    ]  # as SegNet publishes them
    assert dataset.ignore_index == 255
    assert len(open_dataset("camvid", str(root), "val")) == 1
    with pytest.raises(IndexError):
        dataset[3]


def test_hidden_files_are_no_images(root: Path) -> None:
    for folder in ("train", "trainannot"):
        (root / folder / "._a.png").write_bytes(b"of another system")
    assert [sample.name for sample in open_dataset("camvid", root, "train")] == ["a", "b", "c"]


def test_labels_may_use_255_for_ignored_pixels(root: Path) -> None:
    write(root / "trainannot" / "a.png", np.full((3, 4), 255, np.uint8))
    assert np.all(open_dataset("camvid", root, "train")[0].labels == 255)


def expect(message: str, *names: Path | str):
    pattern = ".*".join([*(str(name) for name in names), message])
    return pytest.raises(InputError, match=f"(?s){pattern}")


def test_missing_root_folder_or_images(root: Path, tmp_path: Path) -> None:
    with expect("does not exist", tmp_path / "nowhere"):
        open_dataset("camvid", tmp_path / "nowhere", "train")
    with expect("does not exist", root / "test"):
        open_dataset("camvid", root, "test")
    (root / "test").mkdir()
    with expect("does not exist", root / "testannot"):
        open_dataset("camvid", root, "test")
    (root / "testannot").mkdir()
    with expect("holds no image", root / "test"):
        open_dataset("camvid", root, "test")
    with expect("is not a folder", root / "train" / "a.png"):
        open_dataset("camvid", root / "train" / "a.png", "train")


def test_image_without_label(root: Path) -> None:
    (root / "trainannot" / "b.png").unlink()
    with expect("image without label", root / "train" / "b.jpg") as caught:
        open_dataset("camvid", root, "train")
    assert str(root / "trainannot" / "b.png") in str(caught.value)
    (root / "trainannot" / "a.png").unlink()
    with expect("2 problems: ") as caught:
        open_dataset("camvid", root, "train")
    assert str(root / "trainannot" / "a.png") in str(caught.value)
    assert len(open_dataset("camvid", root, "train", strict=False).problems) == 2


def test_label_of_another_size(root: Path) -> None:
    label = write(root / "trainannot" / "a.png", np.zeros((3, 5), np.uint8))
    dataset = open_dataset("camvid", root, "train")
    with expect("5x3 pixels", label) as caught:
        dataset[0]
    assert str(root / "train" / "a.png") in str(caught.value)
    assert "4x3" in str(caught.value)


@pytest.mark.parametrize("value", [12, 254])
def test_label_value_out_of_range(root: Path, value: int) -> None:
    label = write(root / "trainannot" / "a.png", np.full((3, 4), value, np.uint8))
    with expect(f"label value {value} is out of range", label):
        open_dataset("camvid", root, "train")[0]


@pytest.mark.parametrize("name", ["train/a.png", "trainannot/a.png"])
@pytest.mark.parametrize("content", [b"", b"broken"])
def test_damaged_files(root: Path, name: str, content: bytes) -> None:
    (root / name).write_bytes(content)
    dataset = open_dataset("camvid", root, "train")
    with expect("", root / name):
        dataset[0]
    assert dataset[1].name == "b"
