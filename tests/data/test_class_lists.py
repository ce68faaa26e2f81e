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
        ("c.txt", "# classes\nroad side\n\n  # round ones\nball # red\n", False),
        ("c.txt", "#010203 road side # grey\n#c8140a\tball", True),
        ("c.txt", "0 road side\n1 ball\n", False),
        ("c.txt", "1: ball\n0: road side\n", False),
        ("c.txt", "index, name, r, g, b\n0,road side,1,2,3\n1,ball,200,20,10", True),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nroad side:1,2,3::\nball:200,20,10:seam:roll\n",
            True,
        ),
        ("labels.txt", "__ignore__\nroad side\nball\n", False),
        ("_classes.csv", "Pixel Value, Class\n0, road side\n1, ball\n", False),  # Roboflow's
        ("c.csv", "label_id,class_name\n0,road side\n1,ball\n", False),
        ("c.csv", "class_name,r,g,b\nroad side,1,2,3\nball,200,20,10\n", True),
        ("c.csv", "name,r,g,b\nroad side,1,2,3\nball,200,20,10\n", True),
        ("c.yaml", "- road side\n- ball\n", False),
        ("c.yaml", "road side: [1, 2, 3]\nball: '#c8140a'\n", True),
        ("c.yaml", "names: {0: road side, 1: ball}", False),
        ("c.yaml", "1: ball\n0: road side\n", False),
        ("c.json", '["road side", "ball"]', False),
        ("c.json", '{\n\t"0": "road side",\n\t"1": "ball"\n}', False),
        ("c.json", '{"ball": 1, "road side": 0}', False),
        (
            "c.json",
            '{"i": 1, "categories": [{"id": 1, "name": "ball"}, {"id": 0, "name": "road side"}]}',
            False,
        ),
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
        ({"a": 1, "b": 2}, r"indices \[1, 2\] must be 0, 1, 2"),
        ([{"id": 7, "name": "a"}, {"id": 0, "name": "b"}], r"indices \[0, 7\] must be"),
    ],
)
def test_what_is_no_list_of_classes(tmp_path: Path, value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_classes(value, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "1 road\n2 ball\n", r"c.txt: indices \[1, 2\] must be 0, 1, 2"),
        ("c.txt", "0 road\n0 ball\n", r"c.txt: indices \[0, 0\] must be 0, 1, 2"),
        ("c.yaml", "a: '#010203'\na: '#c8140a'\n", "c.yaml: the key 'a' is there twice"),
        ("c.json", '{"a": [1, 2, 3], "a": [3, 2, 1]}', "c.json: the key 'a' is there twice"),
        ("c.csv", "Idx,Ratio,Name\n1,0.2,wall\n", "c.csv: a table of idx, ratio, name; must be"),
        ("c.txt", "Idx\tRatio\tName\n1\t0.2\twall\n", "c.txt: a table of idx, ratio, name"),
        ("c.txt", "1\t0.2\twall\n2\t0.1\tsky\n", r"c.txt: indices \[1, 2\] must be 0, 1, 2"),
        ("c.txt", "0 wall\n1 sky\n1 2 3 sea\n", "'1 2 3 sea' has no index, all other lines have"),
        ("c.csv", "Wert,Klasse\n0,wall\n1,sky\n", "'Wert,Klasse' has no index, all other lines"),
        ("c.txt", "wall\tmur\nsky\tciel\n", r"'wall\\tmur' cannot be the name of a class"),
    ],
)
def test_files_that_would_mean_other_classes(tmp_path: Path, name, text, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(name, tmp_path)


def test_a_file_that_windows_wrote(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("road side\r\nball\r\n", "utf-16")
    assert read_classes("c.txt", tmp_path).names == NAMES


def test_the_home_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither .* is a file"):
        read_classes("~nobody-of-this-name/c.txt", tmp_path)
