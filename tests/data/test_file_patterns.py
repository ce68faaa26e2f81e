"""Which files a pattern takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_data import LABELS, error, lay, names, write

from deepcrf_ext.data.file_patterns import FilePattern


@pytest.mark.parametrize(
    ("pattern", "taken", "others"),
    [
        ("{split}/{name}", ["a.png", "b.PNG"], ["a.labels", "a.txt"]),
        ("{split}/**", ["a.png", "b.PNG"], ["a.labels", "a.txt"]),
        ("{split}/{name}.labels", ["a.labels"], []),
        ("{split}/{name}.*s", [], ["a.labels"]),
        ("{split}/{name}.png", ["a.png", "b.PNG"], []),
    ],
)
def test_files_of_images_or_of_the_patterns_own_suffix(
    tmp_path: Path, pattern: str, taken: list[str], others: list[str]
) -> None:
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.PNG", "a.labels", "a.txt"):
        (tmp_path / "val" / name).touch()
    found = FilePattern("data.masks", pattern).find(tmp_path, "val")
    assert sorted(path.name for paths in found.files.values() for path in paths) == taken
    assert sorted(path.name for path in found.others) == others


@pytest.mark.parametrize(
    ("images", "masks", "image", "mask"),
    [
        ("{split}/img/{name}.jpg", "{split}/gt/{name}_L.png", "t/img/x/a.jpg", "t/gt/x/a_L.png"),
        ("l/{split}/{name}_left.png", "{split}/{name}_id.png", "l/t/x/a_left.png", "t/x/a_id.png"),
        ("{split}/{name}.png", "{split}/{name}_mask.png", "t/x/a.png", "t/x/a_mask.png"),
        ("{split}/**/*.jpg", "{split}/**/*.png", "t/x/a.jpg", "t/x/a.png"),
        ("{split}/{name}/rgb.png", "{split}/{name}/id.png", "t/x/a/rgb.png", "t/x/a/id.png"),
        ("{split}/{name}", "m/{split}/{name}", "t/x/a.bmp", "m/t/x/a.png"),
        ("p[1]/{split}/x/*", "q(1)/{split}/x/?.png", "p[1]/t/x/a.bmp", "q(1)/t/x/a.png"),
    ],
)
def test_patterns(tmp_path: Path, images: str, masks: str, image: str, mask: str) -> None:
    lay(tmp_path, (image, mask))
    assert names(tmp_path, "t", images=images, masks=masks) in (["x__a"], ["a"])


def test_absolute_patterns(tmp_path: Path) -> None:
    lay(tmp_path, ("far/train/a.png", "near/train/a.png"))
    assert names(tmp_path / "near", images=f"{tmp_path}/far/{{split}}/**", masks="{split}/**") == [
        "a"
    ]


def test_pattern_without_a_placeholder_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, ("images/train/a.png", "masks/train/a.png"))
    assert error(tmp_path, images="images/a.png").startswith("data.images: got 'images/a.png',")


def test_suffixes_of_a_pattern_are_taken_in_any_case(tmp_path: Path) -> None:
    lay(tmp_path, ("i/train/a.JPG", "m/train/a_L.PNG"), ("i/train/b.jpg", "m/train/b_L.png"))
    patterns = {"images": "i/{split}/{name}.jpg", "masks": "m/{split}/{name}_L.png"}
    assert names(tmp_path, **patterns) == ["a", "b"]


@pytest.mark.parametrize(
    ("patterns", "image", "mask"),
    [
        ({"images": "images/{split}/**", "masks": "masks/**"}, "images/{}/{}.jpg", "masks/{1}.png"),
        ({"images": "images/**", "masks": "masks/{split}/**"}, "images/{1}.jpg", "masks/{}/{}.png"),
    ],
)
def test_a_folder_of_all_splits_beside_folders_of_each(
    tmp_path: Path, patterns: dict[str, str], image: str, mask: str
) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        lay(tmp_path, (image.format(split, name), mask.format(split, name)))
    assert names(tmp_path, **patterns) == ["a", "b"]
    assert names(tmp_path, "val", **patterns) == ["c"]
    sided = "images" if "{split}" in patterns["images"] else "masks"
    write(tmp_path / sided / "train" / "alone.png", LABELS)
    assert "alone.png: " in error(tmp_path, **patterns)
