"""Labels of pixels from marginals of nodes, and of whole images of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_run import write_run
from torch.nn import functional

from deepcrf_ext import DenseCRFParams, reference
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import (
    named_variant,
    predict_image,
    side_in_memory,
    upsample_labels,
)
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.records.checkpoint import load_model

RELATIONS = ("surrounding", "above_below")


@pytest.mark.parametrize("memory", [0, 5_000, 400_000, 10**9])
def test_networks_see_what_their_graphs_leave_room_for(run, memory):
    model, _, _ = load_model(run)
    variant = model.default_variant()

    def needed(side: int) -> int:
        grid = model.grid_size(side // 2, side)
        edges = sum(model.config.relations[r].box(*grid).num_edges(*grid) for r in RELATIONS)
        return 16 * (edges + len(RELATIONS) * grid[0] * grid[1])

    side = side_in_memory(model, variant, (100, 200), 160, memory)
    assert 1 <= side <= 160
    assert side == 1 or needed(side) <= memory
    assert side == 160 or needed(min(160, 2 * side + 8)) > memory  # not needlessly small
    assert side_in_memory(model, variant, (10, 20), 160, 10**9) == 20
    unary = named_variant(model, "unary-3scales")
    assert side_in_memory(model, unary, (100, 200), 160, 0) == 160  # no graph


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 61)])
def test_upsampled_labels_are_the_argmax_of_upsampled_marginals(size):
    marginals = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(marginals[None], size, mode="bilinear", align_corners=False)[0]
    labels = upsample_labels(marginals, size)
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(labels.long(), whole.argmax(0))


def test_upsampling_gives_ties_to_the_first_class_and_needs_a_class():
    assert upsample_labels(torch.full((3, 2, 2), 1 / 3), (4, 4)).unique().tolist() == [0]
    with pytest.raises(ValueError, match="no classes"):
        upsample_labels(torch.zeros(0, 2, 2), (4, 4))


def test_prediction_equals_the_models_and_other_rows_differ(run):
    model, _, _ = load_model(run)
    image = np.random.default_rng(2).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    predictions = {}
    for row in ("unary-3scales", "1unary+2pair"):
        predictions[row] = predict_image(model, image, row, amp=False)
        with torch.no_grad():
            expected = model.predict(pixels, row)[0].argmax(0).numpy()
        np.testing.assert_array_equal(predictions[row].labels, expected)
    assert (predictions["unary-3scales"].labels != predictions["1unary+2pair"].labels).any()


@pytest.mark.parametrize("row", ["unary-3scales", "full"])
def test_large_images_are_done_in_parts(run, row):
    """In little memory, with the same result."""
    model, _, _ = load_model(run)
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 200, (11, 15, 1)), np.ones((28, 28, 3))).astype(np.uint8)
    image += rng.integers(0, 40, image.shape, dtype=np.uint8)
    crf = DenseCRFSettings(DenseCRFParams(bilateral_sxy=20), iterations=3)
    whole, parts = (
        predict_image(model, image, row, 64, False, crf, memory).labels
        for memory in (2 * 10**9, 9 * 10**6)
    )
    assert len(np.unique(whole)) > 1
    assert (whole == parts).mean() > 0.999


def test_dense_crf_sees_the_image_at_its_own_size(run):
    model, _, _ = load_model(run)
    image = np.random.default_rng(2).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    settings = DenseCRFSettings(DenseCRFParams(1, 2, 5, 60, 4), iterations=3)
    prediction = predict_image(model, image, "full", 20, amp=False, dense_crf=settings)
    plain = predict_image(model, image, "1unary+2pair", 20, amp=False)
    np.testing.assert_array_equal(prediction.marginals, plain.marginals)
    nodes = torch.from_numpy(plain.marginals)[None]
    pixels = functional.interpolate(nodes, (33, 47), mode="bilinear", align_corners=False)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    wanted = reference.dense_crf(-pixels.clamp(min=1e-5).log(), planes, settings.params, 3)
    np.testing.assert_array_equal(prediction.labels, wanted[0].argmax(0).numpy())
    assert (prediction.labels != plain.labels).any()


def test_max_size_limits_what_the_networks_see(run):
    model, _, _ = load_model(run)
    seen = []
    model.pyramid.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    image = np.zeros((30, 200, 3), np.uint8)
    for max_size in (None, 50, 1000):
        prediction = predict_image(model, image, "unary-3scales", max_size)
        assert prediction.labels.shape == (30, 200)
    assert [tuple(shape) for shape in seen] == [(30, 200), (8, 50), (30, 200)]


def test_predict_image_takes_any_strides_and_names_what_is_no_image(run):
    model, _, _ = load_model(run)
    image = np.random.default_rng(2).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    expected = predict_image(model, image, "unary-3scales")
    from_opencv = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    actual = predict_image(model, from_opencv, "unary-3scales")
    np.testing.assert_array_equal(actual.marginals, expected.marginals)
    for wrong in (image.astype(np.float32), image[..., 0], image[..., :2], image[:0]):
        with pytest.raises(ValueError, match=r"image: got .*must be uint8 \[H, W, 3\]"):
            predict_image(model, wrong, "unary-3scales")


def test_row_without_its_networks_names_them(tmp_path):
    model, _, _ = load_model(
        write_run(tmp_path / "run", tmp_path / "data", potentials=("unary", "surrounding"))
    )
    with pytest.raises(InputError, match=r"needs the potentials above_below.*has the rows unary-3"):
        named_variant(model, "1unary+2pair")
