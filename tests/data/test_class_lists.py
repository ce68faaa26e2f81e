"""Lists of classes: what settings and files may look like."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcrf_ext.data.class_lists import read_classes
from deepcrf_ext.errors import InputError

NAMES = ("road side", "ball")
COLOURS = {"road side": (1, 2, 3), "ball": (200, 20, 10)}


@pytest.mark.parametrize(
    ("name", "text", "coloured"),
    [
        ("c.txt", "road side\nball\n", False),
        ("c.txt", "\ufeff road side \r\n\r\nball", False),
        ("c.txt", "road side 1 2 3\nball 200 20 10\n", True),
        ("c.txt", "1 2 3\troad side\n200 20 10\t\tball\n", True),
        ("c.txt", "road side #010203\nball #c8140a", True),
        ("c.csv", "name,r,g,b\nroad side,1,2,3\nball,200,20,10\n", True),
        ("c.yaml", "- road side\n- ball\n", False),
        ("c.yaml", "road side: [1, 2, 3]\nball: '#c8140a'\n", True),
        ("c.yaml", "names: {0: road side, 1: ball}", False),
        ("c.json", '["road side", "ball"]', False),
        ("c.json", '{"classes": ["road side", "ball"]}', False),
        (
            "c.json",
            '[{"name": "road side", "color": [1, 2, 3]}, {"name": "ball", "colour": "200 20 10"}]',
            True,
        ),
    ],
)
def test_files(tmp_path: Path, name: str, text: str, coloured: bool) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    classes = read_classes(name, tmp_path)
    assert classes.names == NAMES
    assert classes.colours == (COLOURS if coloured else None)
    assert classes.palette.shape == (2, 3)
    assert read_classes(str(tmp_path / name), Path("/")) == classes
    assert read_classes(classes.plain(), tmp_path) == classes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.txt", "data.classes: neither .* is a file; must be a list of names"),
        ("{a: #010203}", "data.classes: got {a: #010203}, which is not YAML; .* in quotes"),
        (3, "data.classes: got 3, must be a list of names"),
        ((), "0 classes; must be 1..255"),
        (tuple(f"c{i}" for i in range(256)), "256 classes"),
        (("a", "a"), "'a' is there twice"),
        (("a", "ignore"), "'ignore' cannot be the name"),
        (("a", " "), "cannot be the name"),
        ([True, "a"], "class True must be a name; put it into quotes"),
        ({"a": [1, 2, 3], "b": None}, "the colour of 'b' is None"),
        ({"a": "red"}, "the colour of 'a' is 'red'"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, "a, b have the same colour"),
        ({0: "a", 2: "b"}, r"indices \[0, 2\] must be 0, 1, 2"),
    ],
)
def test_what_is_no_list_of_classes(tmp_path: Path, value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_classes(value, tmp_path)
