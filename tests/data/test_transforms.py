"""Transforms keep image and labels aligned, give the sizes they promise and repeat exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcrf_ext.data import Sample, TrainTransform, to_tensors, transforms
from deepcrf_ext.data.transforms import PAD_COLOUR

sides = st.integers(1, 40)
crops = st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50))
seeds = st.integers(0, 2**32 - 1)


def coded_sample(height: int, width: int) -> Sample:
    """Red holds the row, green the column, blue 7; the label is a hash of row and column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows, columns, np.full_like(rows, 7)], axis=2)
    return Sample(image, code(rows, columns), "coded")


def code(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return ((rows.astype(np.int64) * 50 + columns) % 251).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(sides, sides, crops, st.booleans(), seeds)
def test_crop_and_flip_move_labels_with_pixels(height, width, crop, flip, seed) -> None:
    transform = TrainTransform(crop, flip, None)
    image, labels = transform(coded_sample(height, width), np.random.default_rng(seed))
    size = crop or (height, width)
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32
    assert labels.shape == size
    assert labels.dtype == torch.int64
    inside = labels != 255
    assert inside.sum() == min(size[0], height) * min(size[1], width)
    rows, columns, blue = (plane[inside].numpy().astype(np.uint8) for plane in image)
    assert np.all(blue == 7)
    np.testing.assert_array_equal(code(rows, columns), labels[inside].numpy())
    padding = image[:, ~inside]
    assert torch.equal(padding, torch.tensor(PAD_COLOUR).float()[:, None].expand_as(padding))
    # What is kept is one rectangle of neighbouring pixels, in order or mirrored.
    for side, steps in ((0, image[0]), (1, image[1])):
        kept = [line[mask] for line, mask in lines(steps, inside, side)]
        directions = {int(step) for line in kept for step in torch.diff(line)}
        assert directions <= ({1} if side == 0 or not flip else {1, -1})
        assert len(directions) <= 1


def lines(plane: torch.Tensor, mask: torch.Tensor, side: int):
    """Columns (side 0) or rows (side 1) of a plane and of its mask."""
    turned = (plane.T, mask.T) if side == 0 else (plane, mask)
    return zip(*turned, strict=True)


@settings(max_examples=200, deadline=None)
@given(
    *(st.integers(1, 120), st.integers(1, 120), crops, st.booleans()),
    *(st.floats(0.3, 3), seeds, st.sampled_from([0, 1])),
)
def test_scaling_keeps_labels_on_their_pixels(height, width, crop, flip, scale, seed, axis) -> None:
    """The image and the label both hold the row (or the column): half a pixel apart at most."""
    labels = np.mgrid[:height, :width][axis].astype(np.uint8)
    sample = Sample(np.repeat(labels[..., None], 3, axis=2), labels, "ramp")
    image, moved = TrainTransform(crop, flip, (scale, scale))(sample, np.random.default_rng(seed))
    assert moved.shape == (crop or tuple(max(1, round(side * scale)) for side in (height, width)))
    inside = moved != 255
    assert inside.any()
    # Half a pixel between the nearest and the interpolated place, half for rounding to integers.
    assert (image[0] - moved).abs()[inside].max() <= 1


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
def test_scaling_is_centred(scale: float) -> None:
    """An edge between two halves stays in the middle, in the image and in the labels."""
    labels = np.repeat(np.array([[0, 200]], np.uint8), 20, axis=1).repeat(8, axis=0)
    sample = Sample(np.repeat(labels[..., None], 3, axis=2), labels, "halves")
    image, moved = TrainTransform(None, False, (scale, scale))(sample, np.random.default_rng(0))
    half = round(20 * scale)
    assert torch.all(moved[:, :half] == 0)
    assert torch.all(moved[:, half:] == 200)
    assert torch.equal(image[0] > 100, moved == 200)


@settings(max_examples=50, deadline=None)
@given(sides, sides, crops, st.booleans(), seeds)
def test_the_generator_alone_decides(height, width, crop, flip, seed) -> None:
    transform = TrainTransform(crop, flip, (0.5, 2.0))
    sample = coded_sample(height, width)
    before = sample.image.copy()
    one, other = (transform(sample, np.random.default_rng((seed, 3, 5))) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    np.testing.assert_array_equal(sample.image, before)


def test_every_place_scale_and_mirror_image_occurs() -> None:
    generator = np.random.default_rng(0)
    sample = coded_sample(6, 8)
    transform = TrainTransform((5, 6), True, None)
    starts = set()
    for _ in range(300):
        image, _ = transform(sample, generator)
        starts.add((int(image[0, 0, 0]), int(image[1, 0].min()), bool(image[1, 0].diff()[0] < 0)))
    assert starts == {(r, c, m) for r in (0, 1) for c in (0, 1, 2) for m in (False, True)}
    stretch = TrainTransform(None, False, (0.5, 1.5))
    heights = {stretch(sample, generator)[1].shape[0] for _ in range(300)}
    assert heights == {3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (4, 5000), (5000, 1)])
@pytest.mark.parametrize("crop", [None, (1, 1), (32, 48)])
def test_extreme_sizes(shape: tuple[int, int], crop: tuple[int, int] | None) -> None:
    sample = Sample(np.full((*shape, 3), 9, np.uint8), np.full(shape, 4, np.uint8), "extreme")
    for scale in (0.1, 1.0, 2.0):
        transform = TrainTransform(crop, True, (scale, scale))
        image, labels = transform(sample, np.random.default_rng(0))
        size = crop or tuple(max(1, round(side * scale)) for side in shape)
        assert image.shape == (3, *size)
        assert torch.all(image[:, labels == 4] == 9)
        assert (labels == 4).any()


def test_to_tensors_changes_nothing_but_the_type() -> None:
    sample = coded_sample(3, 5)
    image, labels = to_tensors(sample)
    assert image.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), sample.image)
    np.testing.assert_array_equal(labels.numpy(), sample.labels)


@pytest.mark.parametrize(
    ("crop", "scale_range", "message"),
    [
        ((0, 5), None, r"crop: got \(0, 5\)"),
        ((5, -1), None, r"crop: got \(5, -1\)"),
        (None, (0.0, 1.0), "scale_range: got"),
        (None, (2.0, 1.0), "scale_range: got"),
        (None, (float("nan"), 1.0), "scale_range: got"),
        (None, (1.0, float("inf")), "scale_range: got"),
    ],
)
def test_bad_settings_are_named(crop, scale_range, message) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(crop, True, scale_range)


def pixel(transform: TrainTransform, colour: tuple[int, int, int], seed: int) -> list[float]:
    """What becomes of an image of one colour."""
    sample = Sample(np.full((2, 2, 3), colour, np.uint8), np.zeros((2, 2), np.uint8), "a")
    image, labels = transform(sample, np.random.default_rng(seed))
    assert labels.eq(0).all()
    return image[:, 0, 0].tolist()


def test_jitter_changes_colours_within_its_bounds_and_labels_never() -> None:
    jitter = TrainTransform(None, False, None, jitter=0.4)
    greys = [pixel(jitter, (100, 100, 100), seed) for seed in range(200)]
    values = [grey[0] for grey in greys]
    assert all(grey == [grey[0]] * 3 for grey in greys)  # grey stays grey
    assert 60 <= min(values) < 65
    assert 135 < max(values) <= 140
    reds = [pixel(jitter, (200, 60, 60), seed) for seed in range(200)]
    spans = [red - other for red, other, _ in reds]
    assert min(spans) < 80 < 180 < max(spans)
    assert pixel(jitter, (255, 255, 255), 3)[0] <= 255


def test_contrast_keeps_the_mean_grey() -> None:
    image = np.array([[[50] * 3, [150] * 3]], np.uint8)
    wide = transforms._jitter(image, 1.0, 1.5, 1.0)
    assert wide[0, :, 0].tolist() == [25, 175]
    assert transforms._jitter(image, 1.0, 1.0, 0.3).tolist() == image.tolist()
    assert transforms._jitter(image, 0.5, 1.0, 1.0)[0, :, 0].tolist() == [25, 75]


def test_hue_turns_colours_and_keeps_greys() -> None:
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    for share, expected in ((1 / 3, (0, 200, 0)), (-1 / 3, (0, 0, 200)), (0.0, (200, 0, 0))):
        turned = transforms._turn_hue(red, share)[0, 0].astype(int)
        assert turned.tolist() == list(expected)
    transform = TrainTransform(None, False, None, hue=0.5)
    assert len({tuple(pixel(transform, (200, 0, 0), seed)) for seed in range(30)}) > 20
    assert pixel(transform, (90, 90, 90), 1) == [90.0] * 3


def test_without_jitter_no_random_number_is_drawn_for_it() -> None:
    drawn, replay = (np.random.default_rng(5) for _ in range(2))
    sample = Sample(np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8), "a")
    TrainTransform((20, 20), True, (0.5, 2.0))(sample, drawn)
    side = round(40 * replay.uniform(0.5, 2.0))
    for _ in range(2):
        replay.integers(abs(side - 20) + 1)
    replay.random()
    assert drawn.random() == replay.random()
