"""Split files: names, pairs and tables, of other systems, and what does not fit in them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from own_data import LABELS, error, lay, names, write


@pytest.mark.parametrize("line", ["a b", "a b.png", "/images/a b.png", "images/a b.png", "  a b\t"])
def test_split_files_of_names(tmp_path: Path, line: str) -> None:
    lay(tmp_path, *((f"images/{n}.png", f"masks/{n}.png") for n in ("a b", "c", "d")))
    (tmp_path / "train.txt").write_text(f"\ufeffd\r\n\n{line}\r\n", "utf-8")
    assert names(tmp_path, split_file="{split}.txt") == ["d", "a b"]


@pytest.mark.parametrize("linked", [False, True])
def test_split_files_of_other_systems_and_of_whole_paths(tmp_path: Path, linked: bool) -> None:
    root = lay(tmp_path / "data", *((f"images/x/{n}.png", f"masks/x/{n}.png") for n in "abc"))
    lines = [r"images\x\c.png", f"{root}/images/x/a.png {root}/masks/x/a.png", "./images/x/b.png"]
    (root / "train.txt").write_text("\r\n".join(lines), "utf-16")
    if linked:
        root = tmp_path / "link"
        root.symlink_to(tmp_path / "data")
    assert len(names(root, split_file="train.txt")) == 3


@pytest.mark.parametrize("gap", [" ", "\t", ",", ", "])
def test_split_files_of_pairs(tmp_path: Path, gap: str) -> None:
    lay(tmp_path, ("JPEGImages/x 1.jpg", "Aug/x 1.png"), ("JPEGImages/y.jpg", "Aug/y.png"))
    lines = [f"/JPEGImages/{n}.jpg{gap}/Aug/{n}.png" for n in ("y", "x 1")]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train_aug.txt").write_text("\n".join(lines))
    assert names(tmp_path, "train_aug", split_file="lists/{split}.txt") == ["y", "x 1"]
    assert names(tmp_path, "any", split_file=str(tmp_path / "lists" / "train_aug.txt")) == [
        "y",
        "x 1",
    ]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "line", ["/images/é/ü.png /masks/é/ü.png", "images/é/ü.png", "é/ü", "ü.png"]
)
def test_split_files_in_another_unicode_form(on_disk: str, line: str, tmp_path: Path) -> None:
    folder, name = unicodedata.normalize("NFC", "é"), unicodedata.normalize(on_disk, "ü")
    lay(tmp_path, (f"images/{folder}/{name}.png", f"masks/{folder}/{name}.png"))
    for form in ("NFC", "NFD"):
        (tmp_path / "train.txt").write_text(unicodedata.normalize(form, line), encoding="utf-8")
        assert len(names(tmp_path, split_file="train.txt")) == 1


def test_a_line_too_long_for_a_name_is_told(tmp_path: Path) -> None:
    lay(tmp_path, ("images/a.png", "masks/a.png"))
    (tmp_path / "train.txt").write_text(f"a\n{'x' * 300} y")
    assert "y' names no image with a mask" in error(tmp_path, split_file="train.txt")
    assert "is a file; must be" in error(tmp_path, classes="x" * 300)


@pytest.mark.parametrize(
    "header", ["image,mask", '"image_path";"label_path"', "File Name\tMask", "id"]
)
def test_split_files_that_are_tables(tmp_path: Path, header: str) -> None:
    lay(tmp_path, ("images/x 1.jpg", "masks/x 1.png"), ("images/image.jpg", "masks/image.png"))
    pair = '"x 1"' if header == "id" else '"images/x 1.jpg", "masks/x 1.png"'
    (tmp_path / "train.csv").write_text(f"{header}\r\n{pair}\r\n")
    assert names(tmp_path, split_file="{split}.csv") == ["x 1"]
    (tmp_path / "train.csv").write_text(f"image\n{pair}\n{header}\n")
    assert f"{header!r} names no image" in error(tmp_path, split_file="{split}.csv")


def test_bad_lines_of_a_split_file_are_all_named(tmp_path: Path) -> None:
    lay(tmp_path, ("images/a.png", "masks/a.png"), ("images/b.png", "masks/b.png"))
    write(tmp_path / "images" / "c.png", LABELS)
    lines = ["a", "nowhere", "c", "a", "../x.png ../y.png", "/etc/passwd /etc/hosts"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    message = error(tmp_path, split_file="train.txt")
    for part in ("'nowhere' names no image", "c.png: image without mask", "names", "'../x.png",
                 "'/etc/passwd", "a.png twice", "5 problems"):  # fmt: skip
        assert part in message


def test_missing_split_file(tmp_path: Path) -> None:
    lay(tmp_path, ("images/a.png", "masks/a.png"))
    assert "data.split_file: neither" in error(tmp_path, split_file="lists/{split}.txt")
