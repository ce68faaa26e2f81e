"""What the values and palettes of masks mean, and when they must be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_data import CLASSES, add_pair, error, source, write
from PIL import Image

from deepcrf_ext.data import check_files, open_dataset
from deepcrf_ext.errors import InputError

BLACK, RED, BLUE = (0, 0, 0), (200, 20, 10), (0, 0, 200)


@pytest.mark.parametrize(
    ("classes", "option"),
    [
        (("background", "crack"), "--data.labels '{0: background, 255: crack}'"),
        (CLASSES, "--data.labels '{0: ground, 255: NAME}'"),
    ],
)
def test_masks_of_0_and_255_alone_need_a_label_map(tmp_path: Path, classes, option: str) -> None:
    for index in range(3):
        binary = np.array([[0, 255 * (index > 0)]], np.uint8)
        add_pair(
            tmp_path / f"images/train/{index}.png", tmp_path / f"masks/train/{index}.png", binary
        )
    message = error(tmp_path, classes=classes)
    assert "255 means ignored pixels" in message
    assert option in message
    dataset = open_dataset(
        source(root=tmp_path, classes=classes, labels={0: classes[0], 255: classes[1]}),
        split="train",
    )
    assert dataset[2].labels.tolist() == [[0, 1]]
    ignoring = source(root=tmp_path, classes=classes, labels={0: classes[0], 255: "ignore"})
    assert open_dataset(ignoring, split="train")[2].labels.tolist() == [[0, 255]]


def test_masks_of_0_and_255_first_and_others_later(tmp_path: Path) -> None:
    """Of rare objects: 255 is then ignored."""
    for index in range(60):
        values = np.array([[0, 255, 2 * (index == 59)]], np.uint8)
        add_pair(
            tmp_path / f"images/t/{index:02}.png", tmp_path / f"masks/t/{index:02}.png", values
        )
    dataset = open_dataset(source(root=tmp_path, classes=CLASSES), split="t")
    assert dataset[59].labels.tolist() == [[0, 255, 2]]
    assert check_files(dataset) == []


def test_masks_of_which_some_are_0_and_1_and_some_0_and_255(tmp_path: Path) -> None:
    for index, value in enumerate((1, 255, 255)):
        values = np.array([[0, value]], np.uint8)
        add_pair(tmp_path / f"images/t/{index}.png", tmp_path / f"masks/t/{index}.png", values)
    dataset = open_dataset(source(root=tmp_path, classes=("ground", "crack")), split="t")
    (problem,) = check_files(dataset)
    assert problem.startswith(f"{tmp_path}/masks/t/1.png: holds 255 and no 1, as 2 of 3 masks")
    assert "'{0: ground, 1: crack, 255: crack or ignore}'" in problem
    told = source(root=tmp_path, labels={0: "ground", 1: "crack", 255: "crack"})
    assert check_files(open_dataset(told, split="t")) == []
    write(tmp_path / "masks/t/2.png", np.array([[1, 255]], np.uint8))  # so 255 is ignored
    assert check_files(dataset) == []
    write(tmp_path / "masks/t/2.png", np.array([[0, 2]], np.uint8))  # so they hold indices
    three = open_dataset(source(root=tmp_path, classes=CLASSES), split="t")
    assert check_files(three) == []


def with_palette(path: Path, indices: list[list[int]], *colours: tuple[int, int, int]) -> None:
    picture = Image.fromarray(np.array(indices, np.uint8))
    picture.putpalette(np.array(colours, np.uint8).tobytes())
    write(path, np.zeros((1, 1), np.uint8))
    picture.save(path)
    image = Path(str(path).replace("masks", "images"))
    write(image, np.zeros((picture.height, picture.width, 3), np.uint8))


def test_palettes_that_differ_are_refused(tmp_path: Path) -> None:
    """Programs that reduce colours number them as they come."""
    first, second = (tmp_path / f"masks/t/{name}.png" for name in "ab")
    with_palette(first, [[0, 1]], BLACK, RED, BLUE)
    with_palette(second, [[0, 1]], RED, BLACK)
    for _ in range(2):  # the second time remembered
        dataset = open_dataset(source(root=tmp_path, classes=CLASSES), split="t")
        (problem,) = check_files(dataset)
        assert problem.startswith(f"{second}: index 0 of its palette is '#c8140a', in {first} 0; ")
        assert "--data.palette-masks colours" in problem
    colours = {"ground": [*BLACK], "tree": [*RED], "sky": [*BLUE]}
    read = source(root=tmp_path, classes=colours, palette_masks="colours")
    dataset = open_dataset(read, split="t")
    assert check_files(dataset) == []
    assert [sample.labels.tolist() for sample in dataset] == [[[0, 1]], [[1, 0]]]
    told = source(root=tmp_path, labels={0: "ground", 1: "tree"})
    assert check_files(open_dataset(told, split="t")) == []
    with_palette(second, [[0, 1]], BLACK, RED, BLACK)  # an index that is not used
    assert check_files(open_dataset(source(root=tmp_path, classes=CLASSES), split="t")) == []
    for mask, ignored in ((first, RED), (second, BLUE)):  # in any colour
        with_palette(mask, [[0, 1, 255]], BLACK, RED, *[ignored] * 254)
    assert check_files(open_dataset(source(root=tmp_path, classes=CLASSES), split="t")) == []


def test_a_palette_that_contradicts_the_classes_is_refused(tmp_path: Path) -> None:
    mask = tmp_path / "masks/t/a.png"
    with_palette(mask, [[0, 1]], BLUE, RED)
    classes = {"tree": [*RED], "sky": [*BLUE]}
    (problem,) = check_files(open_dataset(source(root=tmp_path, classes=classes), split="t"))
    assert problem.startswith(
        f"{mask}: index 0 of its palette is '#0000c8', the colour of sky, not of tree; "
    )
    classes = {"sky": [*BLUE], "tree": [*RED]}
    assert check_files(open_dataset(source(root=tmp_path, classes=classes), split="t")) == []
    told = {0: "tree", 1: "sky", "#0000c8": "sky"}
    (problem,) = check_files(open_dataset(source(root=tmp_path, labels=told), split="t"))
    assert "is '#0000c8', the colour of sky, not of tree; " in problem
    with pytest.raises(
        InputError, match="holds 1 .*indices of its palette, whose colours --data.p"
    ):
        open_dataset(source(root=tmp_path, labels={0: "sky", "#c8140a": "tree"}), split="t")[0]
    write(mask, np.array([[0, 1]], np.uint8))  # without a palette, none is told of
    with pytest.raises(InputError, match="holds 1 ") as caught:
        open_dataset(source(root=tmp_path, labels={0: "sky", "#c8140a": "tree"}), split="t")[0]
    assert "indices of its palette" not in str(caught.value)


def test_palettes_of_black_and_white_are_told_by_indices(tmp_path: Path) -> None:
    """White is 255 too, which is ignored where it is a value."""
    with_palette(tmp_path / "masks/t/a.png", [[0, 1]], BLACK, (255, 255, 255))
    for settings in (
        {"classes": ("ground", "tree")},
        {"labels": {0: "ground", 1: "tree", 255: "ignore"}},
        {"classes": {"ground": [*BLUE], "tree": [*RED]}},
    ):
        dataset = open_dataset(source(root=tmp_path, **settings), split="t")
        assert check_files(dataset) == []
        assert dataset[0].labels.tolist() == [[0, 1]]
