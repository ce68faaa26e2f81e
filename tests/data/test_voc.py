"""VOC 2012 and SBD in miniature: their folders, lists, palette PNGs and .mat files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix
from voc_lists import TEST, TRAIN, VAL, write_list

from deepcrf_ext.config import DataSource
from deepcrf_ext.data import check_files, open_dataset, write_labels
from deepcrf_ext.data.images import voc_palette
from deepcrf_ext.data.voc import read_names, read_sbd_labels
from deepcrf_ext.errors import InputError

SBD_TRAIN, SBD_VAL = ["2008_000003", "2007_000033"], ["2008_000008", "2007_000032"]
AUGMENTED = ["2007_000032", "2007_000129", "2008_000003", "2008_000008"]
OFFICIAL = np.array([[0, 1, 15, 20, 255]] * 4, np.uint8)  # labels of VOC's own annotation
ADDED = np.array([[0, 2, 15, 20, 7]] * 4, np.uint8)  # labels of SBD's


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """data/VOCdevkit/VOC2012 with the three lists, all images and the labels of VOC."""
    folder = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    for name, names in (("train", TRAIN), ("val", VAL), ("test", TEST), ("trainval", TRAIN + VAL)):
        write_list(folder / "ImageSets" / "Segmentation" / f"{name}.txt", names)
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir()
    for name in {*TRAIN, *VAL, *TEST, *SBD_TRAIN, *SBD_VAL}:
        Image.new("RGB", (5, 4), (90, 90, 90)).save(folder / "JPEGImages" / f"{name}.jpg")
    for name in TRAIN + VAL:
        write_labels(folder / "SegmentationClass" / f"{name}.png", OFFICIAL, voc_palette(256))
    return folder


def add_png_labels(voc: Path) -> None:
    """SegmentationClassAug as it is passed around: grey PNGs for all of SBD and VOC."""
    (voc / "SegmentationClassAug").mkdir()
    for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        Image.fromarray(ADDED).save(voc / "SegmentationClassAug" / f"{name}.png")


def add_benchmark(folder: Path, **options: bool) -> Path:
    """benchmark_RELEASE with its lists and its .mat files, structured as the published ones."""
    dataset = folder / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    write_list(dataset / "train.txt", SBD_TRAIN)
    write_list(dataset / "val.txt", SBD_VAL)
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix((4, 5), dtype=bool)
    content = {
        "Boundaries": boundaries,
        "Segmentation": ADDED,
        "CategoriesPresent": np.array([[2], [7], [15], [20]], np.uint8),
    }
    for name in SBD_TRAIN + SBD_VAL:
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": content}, **options)
    return dataset


def test_labels_of_sbd_are_none_of_voc(voc: Path) -> None:
    add_png_labels(voc)
    (voc / "SegmentationClass" / f"{TRAIN[0]}.png").unlink()
    with pytest.raises(InputError, match=f"{TRAIN[0]}.jpg: image without label"):
        open_dataset("voc", voc, "train")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_root_may_be_any_folder_above(voc: Path, depth: int) -> None:
    root = [voc, *voc.parents][depth]
    assert [sample.name for sample in open_dataset("voc", root, "train")] == TRAIN


def test_samples_and_attributes(voc: Path) -> None:
    dataset = open_dataset("voc", voc, "val")
    sample = dataset[1]
    assert sample.name == "2008_000002"
    assert sample.image.shape == (4, 5, 3)
    np.testing.assert_array_equal(sample.labels, OFFICIAL)
    assert dataset.num_classes == 21
    assert dataset.classes[0] == "background"
    assert dataset.classes[15] == "person"
    assert tuple(dataset.palette[15]) == (192, 128, 128)
    assert len(open_dataset("voc", voc, "trainval")) == 4


def test_the_test_split_has_no_labels(voc: Path) -> None:
    (sample,) = open_dataset("voc", voc, "test")
    assert sample.labels.shape == (4, 5)
    assert np.all(sample.labels == 255)


def check_augmented(root: Path) -> None:
    samples = list(open_dataset("voc", root, "train_aug"))
    assert [sample.name for sample in samples] == AUGMENTED
    for sample in samples:
        expected = OFFICIAL if sample.name in TRAIN else ADDED
        np.testing.assert_array_equal(sample.labels, expected)


def test_augmentation_from_pngs(voc: Path) -> None:
    add_png_labels(voc)
    (voc / "SegmentationClassAug" / "._x.png").write_bytes(b"of another system")
    check_augmented(voc)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("compressed", [False, True])
def test_augmentation_from_mat_files(voc: Path, depth: int, compressed: bool) -> None:
    add_benchmark([voc, *voc.parents][depth], do_compression=compressed)
    check_augmented(voc)
    check_augmented(voc.parent.parent)


def test_augmentation_by_a_given_list(voc: Path) -> None:
    add_png_labels(voc)
    write_list(voc / "ImageSets" / "Segmentation" / "train_aug.txt", ["2008_000008", TRAIN[0]])
    names = [sample.name for sample in open_dataset("voc", voc, "train_aug")]
    assert names == ["2008_000008", TRAIN[0]]


def test_augmentation_that_is_not_there(voc: Path) -> None:
    with pytest.raises(InputError, match="SegmentationClassAug: does not exist.*benchmark_RELEASE"):
        open_dataset("voc", voc, "train_aug")
    (voc / "SegmentationClassAug").mkdir()
    with pytest.raises(InputError, match="SegmentationClassAug: holds no label"):
        open_dataset("voc", voc, "train_aug")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:300], "cannot be read as an SBD label file"),
        (lambda content: b"", "cannot be read as an SBD label file"),
        (lambda content: b"\x00" * 500, "cannot be read as an SBD label file"),
    ],
)
def test_damaged_mat_files_are_named(voc: Path, damage, message: str) -> None:
    path = add_benchmark(voc) / "cls" / "2008_000003.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        open_dataset("voc", voc, "train_aug")[2]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"other": 1},
        {"GTcls": {"Boundaries": 1}},
        {"GTcls": {"Segmentation": np.zeros((4, 5))}},
        {"GTcls": np.zeros((4, 5), np.uint8)},
    ],
)
def test_mat_files_of_another_structure_are_named(tmp_path: Path, content: dict) -> None:
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(InputError, match="a.mat: "):
        read_sbd_labels(tmp_path / "a.mat")


def test_out_of_range_mat_labels_are_named(voc: Path) -> None:
    path = add_benchmark(voc) / "cls" / "2008_000003.mat"
    savemat(path, {"GTcls": {"Segmentation": np.full((4, 5), 21, np.uint8)}})
    with pytest.raises(InputError, match=f"{path}: label value 21 is out of range"):
        open_dataset("voc", voc, "train_aug")[2]


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "/etc/passwd", "a/b", r"..\secret", r"C:\a", "~root", "a b", "a\0b"],
)
def test_lists_cannot_name_paths(voc: Path, name: str) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    write_list(path, [TRAIN[0], name])
    with pytest.raises(InputError, match="without a path") as caught:
        open_dataset("voc", voc, "train")
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)


def test_list_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(InputError, match="list.txt: no such split file"):
        read_names(path)
    path.write_text("\n  \n")
    with pytest.raises(InputError, match="list.txt: names no image"):
        read_names(path)
    path.write_bytes(b"\xff\xfe\x00 a")
    with pytest.raises(InputError, match="list.txt: cannot be read"):
        read_names(path)
    path.write_bytes("\ufeff2007_000032\r\n\r\n 2007_000033 ".encode())
    assert read_names(path) == ("2007_000032", "2007_000033")


def test_missing_files_are_named(voc: Path, tmp_path: Path) -> None:
    label = voc / "SegmentationClass" / f"{TRAIN[1]}.png"
    label.unlink()
    with pytest.raises(InputError, match=f"{TRAIN[1]}.jpg: image without label.*{label}"):
        open_dataset("voc", voc, "train")
    image = voc / "JPEGImages" / f"{VAL[0]}.jpg"
    image.unlink()
    with pytest.raises(InputError, match=f"{image}: no such file, but the split val names it"):
        open_dataset("voc", voc, "val")
    other = voc / "JPEGImages" / f"{VAL[1]}.jpg"
    other.unlink()
    with pytest.raises(InputError, match=f"2 problems: {image}: .*; {other}: no such file"):
        open_dataset("voc", voc, "val")
    lenient = open_dataset("voc", voc, "val", strict=False)
    assert lenient.files == ()
    assert len(check_files(lenient)) == 2
    with pytest.raises(InputError, match="nowhere: does not exist"):
        open_dataset("voc", tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no JPEGImages folder"):
        open_dataset("voc", tmp_path / "empty", "train")


@pytest.mark.parametrize("place", ["given", "in ImageSets"])
def test_augmentation_by_a_list_of_pairs(voc: Path, tmp_path: Path, place: str) -> None:
    """The list that DeepLab's repositories share."""
    add_png_labels(voc)
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in reversed(AUGMENTED)]
    if place == "given":
        path = tmp_path / "aug.txt"
        dataset = DataSource("voc", voc, split_file=str(path))
    else:
        path = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
        dataset = DataSource("voc", voc)
    write_list(path, lines)
    samples = list(open_dataset(dataset, split="train_aug"))
    assert [sample.name for sample in samples] == AUGMENTED[::-1]
    for sample in samples:
        np.testing.assert_array_equal(sample.labels, ADDED)
    write_list(path, [*lines, "/JPEGImages/no.jpg /SegmentationClassAug/no.png"])
    with pytest.raises(InputError, match="names no image and label below") as caught:
        open_dataset(dataset, split="train_aug")
    assert str(path) in str(caught.value)
