"""A folder of images and masks: layouts, names, split files, and everything that does not fit."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from own_data import add_pair, source, write
from PIL import Image

from deepcrf_ext.config import DataSource
from deepcrf_ext.data import check_files, open_dataset
from deepcrf_ext.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


LABELS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
CLASSES = ("ground", "tree", "sky")


def names(root: Path, split: str = "train", **settings: object) -> list[str]:
    dataset = open_dataset(source(root=root, classes=CLASSES, **settings), split=split)
    for sample in dataset:
        np.testing.assert_array_equal(sample.labels, LABELS)
        assert sample.image.shape == (2, 3, 3)
    return [sample.name for sample in dataset]


def lay(root: Path, *pairs: tuple[str, str]) -> Path:
    for image, mask in pairs:
        add_pair(root / image, root / mask, LABELS)
    return root


def error(root: Path, split: str = "train", **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(source(root=root, **{"classes": CLASSES, **settings}), split=split)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def test_two_links_to_a_folder_are_both_read(tmp_path: Path) -> None:
    lay(tmp_path, ("disk/a.png", "labels/a.png"))
    for kind, target in (("images", "disk"), ("masks", "labels")):
        (tmp_path / kind / "train").mkdir(parents=True)
        for name in ("one", "two"):
            (tmp_path / kind / "train" / name).symlink_to(tmp_path / target)
    assert names(tmp_path) == ["one__a", "two__a"]


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


BLACK, RED, BLUE = (0, 0, 0), (200, 20, 10), (0, 0, 200)


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
