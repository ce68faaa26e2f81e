"""Which files a pattern takes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
