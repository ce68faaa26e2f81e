"""A folder of images and masks: layouts, names, settings, and files that do not fit together."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from own_data import CLASSES, LABELS, error, lay, names, source, write

from deepcrf_ext.config import DataSource
from deepcrf_ext.data import check_files, open_dataset
from deepcrf_ext.errors import InputError


def test_default_layout_with_sub_folders_spaces_accents_and_any_suffix(tmp_path: Path) -> None:
    lay(
        tmp_path,
        ("images/train/a b/ä.jpg", "masks/train/a b/ä.png"),
        ("images/train/c.d.TIF", "masks/train/c.d.bmp"),
        ("images/train/e.webp", "masks/train/e.tiff"),
        ("images/val/v.jpeg", "masks/val/v.png"),
    )
    assert names(tmp_path) == ["a b__ä", "c.d", "e"]
    assert names(tmp_path, "val") == ["v"]


def test_accents_compare_in_whichever_unicode_form(tmp_path: Path) -> None:
    composed, split = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    lay(tmp_path, (f"images/train/{composed}.png", f"masks/train/{split}.png"))
    assert names(tmp_path) == [composed]


def test_masks_in_arrays(tmp_path: Path) -> None:
    """Integers of any kind; -1 is ignored, as labelme writes it."""
    planes = (LABELS, np.where(LABELS == 255, -1, LABELS.astype(np.int64))[None])
    for number, plane in enumerate(planes):
        write(tmp_path / f"images/train/{number}.png", np.zeros((2, 3, 3), np.uint8))
        (tmp_path / "masks/train").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"masks/train/{number}.npy", plane)
    np.savez(tmp_path / "masks/train/2.npz", LABELS.astype(np.uint16))
    write(tmp_path / "images/train/2.png", np.zeros((2, 3, 3), np.uint8))
    assert names(tmp_path) == ["0", "1", "2"]
    dataset = open_dataset(source(root=tmp_path, classes=CLASSES))
    assert check_files(dataset) == []
    np.save(tmp_path / "masks/train/0.npy", LABELS.astype(float))
    (tmp_path / "masks/train/2.npz").write_bytes(b"PK")
    first, last = check_files(dataset)
    assert "0.npy: float64 of shape [2, 3]; must be integers [H, W]" in first
    assert "2.npz: cannot be read as an array" in last


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    for name in ("images/train/.DS_Store", "masks/train/._a.png", "images/train/notes.txt"):
        (tmp_path / name).write_text("x")
    dataset = open_dataset(source(root=tmp_path, classes=CLASSES), split="train")
    assert [path.name for path in dataset.pairing.left_out] == ["notes.txt"]
    assert len(dataset) == 1


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    lay(tmp_path / "disk", ("pictures/a.png", "labels/a.png"))
    for kind, target in (("images", "pictures"), ("masks", "labels")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "train").symlink_to(tmp_path / "disk" / target)
    (tmp_path / "disk" / "pictures" / "loop").symlink_to(tmp_path / "disk" / "pictures")
    assert names(tmp_path) == ["a"]


def test_missing_split_folder_lists_what_is_there(tmp_path: Path) -> None:
    lay(tmp_path, ("images/training/a.png", "masks/training/a.png"), ("other/b.png", "other/c.png"))
    message = error(tmp_path)
    assert message.startswith(f"{tmp_path}/images/train: does not exist")
    assert "images/training (1), masks/training (1), other (2)" in message
    (tmp_path / "images" / "train").mkdir()
    assert error(tmp_path).startswith(f"{tmp_path}/images/train: holds no images")
    assert error(tmp_path / "other", images="{split}/**").count("(2)") == 1


def test_images_without_masks_and_masks_without_images_are_all_named(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    for name in ("images/train/b.png", "images/train/c.jpg", "masks/train/d.png"):
        write(tmp_path / name, LABELS)
    message = error(tmp_path)
    assert "3 problems" in message
    assert f"{tmp_path}/images/train/b.png: image without mask" in message
    assert f"{tmp_path}/images/train/c.jpg: image without mask" in message
    assert f"{tmp_path}/masks/train/d.png: mask without image" in message


def test_files_that_share_a_name_are_named(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    write(tmp_path / "images" / "train" / "a.bmp", LABELS)
    message = error(tmp_path)
    assert "a.bmp" in message
    assert "a.png: images that share the name 'a'" in message


def test_masks_with_another_ending_are_recognised_in_the_error(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a_L.png"))
    message = error(tmp_path)
    assert "--data.masks 'masks/{split}/{name}_L.*'" in message
    assert names(tmp_path, masks="masks/{split}/{name}_L.*") == ["a"]


def test_classes_must_be_given(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    assert error(tmp_path, classes=None).startswith("data.classes: not given")


def test_settings_are_resolved_to_plain_values(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    (tmp_path / "classes.txt").write_text("ground 1 2 3\ntree 4 5 6\nsky 7 8 9\n")
    (tmp_path / "labels.yaml").write_text("{0: ground, 1: tree, 2: sky, 255: ignore}")
    dataset = open_dataset(
        source(root=tmp_path, classes="classes.txt", labels="labels.yaml"), split="train"
    )
    assert dataset.source.classes == {"ground": [1, 2, 3], "tree": [4, 5, 6], "sky": [7, 8, 9]}
    assert dataset.source.labels == {0: "ground", 1: "tree", 2: "sky", 255: "ignore"}
    for name in ("classes.txt", "labels.yaml"):
        (tmp_path / name).unlink()
    again = open_dataset(dataset.source, split="train")
    np.testing.assert_array_equal(again[0].labels, LABELS)
    assert again.palette.tolist() == dataset.palette.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_settings_of_a_folder_do_not_go_with_other_data_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.classes: goes with data.dataset folder, not scenes"):
        open_dataset(DataSource("scenes", classes=("a",)), split="train")
    with pytest.raises(InputError, match="data.split_file: goes with"):
        open_dataset(DataSource("camvid", tmp_path, split_file="x"), split="train")
    with pytest.raises(InputError, match="data.root: not given"):
        open_dataset(source(classes=("a",)), split="train")


def test_two_links_to_a_folder_are_both_read(tmp_path: Path) -> None:
    lay(tmp_path, ("disk/a.png", "labels/a.png"))
    for kind, target in (("images", "disk"), ("masks", "labels")):
        (tmp_path / kind / "train").mkdir(parents=True)
        for name in ("one", "two"):
            (tmp_path / kind / "train" / name).symlink_to(tmp_path / target)
    assert names(tmp_path) == ["one__a", "two__a"]
