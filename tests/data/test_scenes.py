"""Rendered scenes repeat exactly, and their look-alikes differ by context and nothing else."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepcrf_ext.data import open_dataset
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.errors import InputError


@pytest.fixture(scope="module")
def samples() -> list:
    return list(Scenes("train"))


def digest(dataset: Scenes, index: int) -> str:
    sample = dataset[index]
    return hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes()).hexdigest()


def test_samples_and_attributes(samples: list) -> None:
    dataset = open_dataset("scenes", None, "train")
    assert [len(Scenes(split)) for split in ("train", "val", "test")] == [256, 64, 64]
    assert len(samples) == 256
    assert len({sample.name for sample in samples}) == 256
    for sample in samples[:20]:
        assert sample.image.shape == (96, 128, 3)
        assert sample.labels.shape == (96, 128)
        assert sample.image.dtype == sample.labels.dtype == np.uint8
    assert dataset.num_classes == len(dataset.palette) == 12
    assert len({tuple(colour) for colour in dataset.palette}) == 12
    names = [name for pair in Scenes.look_alikes for name in pair]
    assert len(names) == len(set(names)) == 8
    assert set(names) <= set(dataset.classes)


def test_every_class_is_common_and_pairs_are_balanced(samples: list) -> None:
    counts = sum(np.bincount(sample.labels.ravel(), minlength=12) for sample in samples)
    assert len(counts) == 12
    assert counts.min() > 0.002 * counts.sum()
    for one, other in Scenes.look_alikes:
        ratio = counts[Scenes.classes.index(one)] / counts[Scenes.classes.index(other)]
        assert 0.6 < ratio < 1.6


def test_the_images_are_those_of_the_records() -> None:
    """The records in benchmarks/results are of these: other images make them another's."""
    labels, means = hashlib.sha256(), []
    for split in ("train", "val", "test"):
        for index in range(8):
            sample = Scenes(split)[index]
            labels.update(sample.labels.tobytes())
            means.append(sample.image.mean((0, 1)))
    assert labels.hexdigest().startswith("3efa527857ac452c")
    np.testing.assert_allclose(np.mean(means, 0), [116.31, 140.18, 143.20], atol=0.02)
    np.testing.assert_allclose(np.std(means, 0), [23.62, 21.27, 26.00], atol=0.02)


def test_a_fresh_process_renders_the_same() -> None:
    code = (
        "from deepcrf_ext.data.scenes import Scenes; import hashlib\n"
        "for split in ('train', 'val'):\n"
        "    s = Scenes(split, 3)[5]\n"
        "    print(hashlib.sha256(s.image.tobytes() + s.labels.tobytes()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [digest(Scenes(split, 3), 5) for split in ("train", "val")]


def test_seed_split_and_index_each_give_other_images() -> None:
    one = Scenes("train", 0)
    digests = {digest(one, index) for index in range(8)}
    digests |= {digest(Scenes("train", 1), 0), digest(Scenes("val", 0), 0)}
    assert len(digests) == 10
    assert digest(one, -1) == digest(one, 255)
    with pytest.raises(IndexError):
        one[256]


@pytest.mark.parametrize("pair", Scenes.look_alikes)
def test_colours_do_not_tell_a_pair_apart(samples: list, pair: tuple[str, str]) -> None:
    """Mean colours of a class in an image spread far wider than the two classes differ."""
    means = [class_means(samples, name, lambda s: s.image) for name in pair]
    difference = np.abs(means[0].mean(axis=0) - means[1].mean(axis=0))
    spread = np.std(np.concatenate(means), axis=0)
    assert np.all(difference < 0.5 * spread)


@pytest.mark.parametrize("pair", Scenes.look_alikes)
def test_position_does_not_tell_a_pair_apart(samples: list, pair: tuple[str, str]) -> None:
    """The best guess from row and column (in cells of 12 x 16 pixels) is right in under 70 %."""
    counts = np.zeros((2, 8, 8))
    for which, name in enumerate(pair):
        for sample in samples:
            mask = sample.labels == Scenes.classes.index(name)
            counts[which] += mask.reshape(8, 12, 8, 16).sum(axis=(1, 3))
        counts[which] /= counts[which].sum()
    assert counts.max(axis=0).sum() / 2 < 0.7


def class_means(samples: list, name: str, values) -> np.ndarray:
    """[images that show the class, channels]: the mean of `values` over its pixels."""
    index = Scenes.classes.index(name)
    masks = [(sample, sample.labels == index) for sample in samples]
    return np.array([values(s)[mask].mean(axis=0) for s, mask in masks if mask.sum() > 30])


def below(labels: np.ndarray, name: str) -> set[str]:
    """The classes that touch the lower edge of a class."""
    mask = labels == Scenes.classes.index(name)
    touching = mask[:-1] & ~mask[1:]
    return {Scenes.classes[value] for value in np.unique(labels[1:][touching])}


def test_context_tells_the_pairs_apart(samples: list) -> None:
    """Hills lie only below the sky, the far shore only above water, and so on."""
    seen = {name: set() for name in Scenes.classes}
    for sample in samples:
        for name in seen:
            seen[name] |= below(sample.labels, name)
    assert "hill" in seen["sky"]
    assert "ground" in seen["water"]
    assert "hill" not in seen["water"]
    assert not {"water", "ground"} & seen["sky"]
    assert "sky" in seen["sun"]
    assert "water" not in seen["sun"]
    assert "water" in seen["buoy"]
    assert "sky" not in seen["buoy"]
    assert "trunk" in seen["tree"]
    assert "pedestal" in seen["statue"]


def test_the_camera_is_held_askew(samples: list) -> None:
    """Ground begins far lower on one side of the picture than on the other, on either side."""
    ground = Scenes.classes.index("ground")
    falls = []
    for sample in samples:
        left, right = (
            np.flatnonzero((sample.labels[:, side] == ground).any(axis=1))
            for side in (slice(0, 8), slice(-8, None))
        )
        if len(left) and len(right):
            falls.append(int(right[0] - left[0]))
    assert np.mean(np.abs(falls) > 24) > 0.3
    assert 0.3 < np.mean(np.array(falls) > 0) < 0.7


def test_objects_are_near_or_far(samples: list) -> None:
    heights = []
    for sample in samples:
        rows = np.flatnonzero((sample.labels == Scenes.classes.index("person")).any(axis=1))
        if len(rows):
            heights.append(int(rows[-1] - rows[0] + 1))
    assert np.percentile(heights, 90) > 2 * np.percentile(heights, 10)


def test_size_scales_the_scene() -> None:
    small, large = Scenes("val")[2], Scenes("val", size=(192, 256))[2]
    assert large.image.shape == (192, 256, 3)
    assert np.mean(large.labels[1::2, 1::2] == small.labels) > 0.97
    assert Scenes("val", size=(32, 50))[0].labels.shape == (32, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "trainval"}, "split: got 'trainval'"),
        ({"split": "train", "seed": -1}, "seed: got -1"),
        ({"split": "train", "size": (31, 64)}, r"size: got \(31, 64\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scenes(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cityscapes", None, "train"), "dataset: got 'cityscapes'.*scenes, camvid, voc"),
        (("scenes", None, "train_aug"), "split: got 'train_aug'.*train, val, test"),
        (("camvid", ".", "trainval"), "split: got 'trainval'"),
        (("camvid", None, "train"), "data.root: not given.*camvid"),
        (("voc", None, "train"), "data.root: not given.*voc"),
        (("scenes", "somewhere", "train"), "root: got somewhere"),
    ],
)
def test_open_dataset_names_the_wrong_argument(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(*arguments)
