"""Images seen in windows, by their own statistics and no larger than asked: against every part by
itself."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import write_run
from torch import nn

from deepcrf_ext.data import open_dataset, to_tensors
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.prediction import predict_image
from deepcrf_ext.evaluation.view_marginals import view_energies, view_marginals
from deepcrf_ext.evaluation.view_statistics import view_statistics
from deepcrf_ext.evaluation.views import View, Views, Window, join_windows
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
ROW = "1unary+2pair"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("run")
    return write_run(folder / "run", folder / "camvid", scales=(1.0, 0.5))


@pytest.fixture(scope="module")
def model(run: Path) -> DeepCRF:
    return load_model(run)[0]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "window", "overlap", "tops", "lefts"),
    [
        ((40, 60), None, 0.5, [0], [0]),
        ((40, 60), (50, 70), 0.5, [0], [0]),  # seen whole
        ((40, 60), (40, 20), 0.0, [0], [0, 20, 40]),
        ((40, 60), (20, 40), 0.5, [0, 10, 20], [0, 20]),
        ((41, 3), (20, 1), 0.25, [0, 10, 21], [0, 1, 2]),
        ((5, 9), (5, 5), 0.3, [0], [0, 2, 4]),  # two would share 1 of 5 columns
    ],
)
def test_windows_cover_a_view(size, window, overlap, tops, lefts) -> None:
    view = View(torch.zeros(1, 3, *size), False)
    windows = Views(window=window, overlap=overlap).windows(view)
    assert [(w.top, w.left) for w in windows] == [(top, left) for top in tops for left in lefts]
    seen = torch.zeros(size)
    for part in windows:
        assert part.of(seen).shape == (part.height, part.width)
        part.of(seen).add_(1)
    assert seen.min() >= 1


def test_windows_side_by_side_are_each_part_by_itself(model: DeepCRF) -> None:
    """Windows of whole nodes that do not overlap: nothing is interpolated."""
    image = picture(32, 48)
    views = Views(window=(16, 24), overlap=0)
    found = predict_image(model, image, ROW, amp=False, views=views).marginals
    assert found.shape == (model.num_classes, 8, 12)
    for top, left in ((0, 0), (0, 24), (16, 0), (16, 24)):
        part = image[top : top + 16, left : left + 24]
        alone = predict_image(model, part, ROW, amp=False).marginals
        rows, columns = slice(top // 4, top // 4 + 4), slice(left // 4, left // 4 + 6)
        np.testing.assert_allclose(found[:, rows, columns], alone, rtol=1e-5, atol=1e-6)


def test_where_windows_overlap_is_their_mean(model: DeepCRF) -> None:
    image = picture(16, 36)
    found = predict_image(model, image, ROW, amp=False, views=Views(window=(16, 24), overlap=0.5))
    first, second = (
        predict_image(model, image[:, left : left + 24], ROW, amp=False).marginals
        for left in (0, 12)
    )
    expected = np.concatenate(
        [first[..., :3], (first[..., 3:] + second[..., :3]) / 2, second[..., 3:]], axis=2
    )
    np.testing.assert_allclose(found.marginals, expected, rtol=1e-5, atol=1e-6)


def test_a_smooth_map_comes_through_windows_off_the_grid() -> None:
    """A ramp, cut into windows at any pixel, is a ramp again where windows have neighbours."""
    size, windows = (10, 64), [Window(0, left, 10, 28) for left in (0, 13, 36)]
    parts = [
        (window.left + (torch.arange(7) + 0.5) * 4).expand(1, 2, 5, 7).double()
        for window in windows
    ]
    joined = join_windows(parts, windows, size)
    expected = (torch.arange(16) + 0.5) * 4
    assert joined.shape == (1, 2, 5, 16)
    # A window ends half a node beyond its last centre, where its map is constant.
    torch.testing.assert_close(joined, expected.expand(1, 2, 5, 16).double(), atol=1.0, rtol=0)
    probabilities = [torch.rand(1, 3, 4, 4).softmax(1) for _ in range(2)]
    pair = [Window(0, 0, 9, 9), Window(0, 5, 9, 9)]
    torch.testing.assert_close(
        join_windows(probabilities, pair, (9, 14)).sum(1), torch.ones(1, 4, 6)
    )


def test_windows_of_every_scale_and_mirror_image(model: DeepCRF) -> None:
    image = picture(30, 44)
    views = Views((0.5, 1.0), True, window=(16, 16))
    one = predict_image(model, image, ROW, amp=False, views=views)
    other = predict_image(model, image[:, ::-1], ROW, amp=False, views=views)
    np.testing.assert_allclose(one.marginals, other.marginals[..., ::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.marginals.sum(0), 1, rtol=1e-5)


def test_max_size_is_of_scale_1(model: DeepCRF) -> None:
    image = picture(30, 60)
    by_argument = predict_image(model, image, ROW, 40, amp=False)
    by_views = predict_image(model, image, ROW, amp=False, views=Views(max_size=40))
    np.testing.assert_array_equal(by_argument.marginals, by_views.marginals)
    assert by_views.marginals.shape[1:] == (5, 10)
    with pytest.raises(ValueError, match="max_size: got 40 beside that of views"):
        predict_image(model, image, ROW, 40, views=Views(max_size=40))


def test_labels_of_views_are_those_of_the_nodes(model: DeepCRF, run: Path) -> None:
    dataset = open_dataset("camvid", run.parent / "camvid", "val")
    sample = dataset[0]
    labels = to_tensors(sample)[1]
    plain, mirrored = view_energies(
        model, sample.image, labels, ("unary",), Views(flip=True), amp=False
    )
    grid = plain[0].grid
    assert plain[1].view(grid[1:]).flip(1).equal(mirrored[1].view(grid[1:]))
    parts = list(
        view_energies(model, sample.image, labels, ("unary",), Views(window=(12, 15), overlap=0))
    )
    assert len(parts) == 4  # of 24 x 30 pixels
    assert parts[3][1].numel() == parts[3][0].unaries["unary"].shape[0]
    corner = labels[12:, 15:]
    assert set(parts[3][1].tolist()) <= set(corner.unique().tolist())


def test_labels_of_a_view_are_those_at_the_centres_of_its_pixels() -> None:
    labels = torch.arange(6 * 9).view(6, 9)
    third = labels[[1, 4]][:, [1, 4, 7]]
    assert View(torch.zeros(1, 3, 2, 3), False).labels(labels).equal(third)
    assert View(torch.zeros(1, 3, 2, 3), True).labels(labels).equal(third.flip(1))


def test_statistics_of_the_image_itself() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm).eval()
    nn.init.uniform_(norm.running_mean)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = 50 + 9 * torch.randn(2, 3, 5, 7)
    maps = model[0](images)
    with view_statistics(model, 1.0):
        found = model(images)
    expected = nn.functional.batch_norm(maps, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(found, expected)
    with view_statistics(model, 0.25):
        found = model(images)
    variance, mean = torch.var_mean(maps.detach(), (0, 2, 3), correction=0)
    mixed = (0.75 * norm.running_mean + 0.25 * mean, 0.75 * norm.running_var + 0.25 * variance)
    torch.testing.assert_close(found, nn.functional.batch_norm(maps, *mixed))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError), view_statistics(model, 0.5):
        model(torch.zeros(1, 4, 2, 2))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_time_is_added_to_what_there_was(model: DeepCRF) -> None:
    seconds = {"networks": 100.0}
    start = time.perf_counter()
    view_marginals(model, picture(24, 32), {ROW: model.variants()[ROW]}, Views(), False, seconds)
    passed = time.perf_counter() - start
    assert 0 < seconds["networks"] - 100 < passed
    assert 0 < seconds[ROW] < passed


def test_every_image_is_mixed_with_the_statistics_of_the_training() -> None:
    norm = nn.BatchNorm2d(3).eval()
    first, second = torch.randn(1, 3, 4, 5), 7 + 2 * torch.randn(1, 3, 4, 5)
    with view_statistics(norm, 0.5):
        alone = norm(second)
    with view_statistics(norm, 0.5):
        norm(first)
        assert torch.equal(norm(second), alone)


def test_layers_without_running_statistics_stay_as_they_are() -> None:
    images = 5 + torch.randn(2, 3, 4, 5)
    for norm in (nn.BatchNorm2d(3, track_running_stats=False).eval(), nn.BatchNorm2d(3).train()):
        wanted = norm(images)
        with view_statistics(norm, 0.5):
            assert torch.equal(norm(images), wanted)


def test_statistics_of_the_image_change_predictions_and_a_single_pixel_has_some(model) -> None:
    image = picture(24, 32)
    plain = predict_image(model, image, ROW, amp=False)
    own = predict_image(model, image, ROW, amp=False, views=Views(batch_statistics=1.0))
    assert not np.allclose(plain.marginals, own.marginals, atol=1e-3)
    again = predict_image(model, image, ROW, amp=False)
    np.testing.assert_array_equal(plain.marginals, again.marginals)
    views = Views(batch_statistics=1.0)
    assert predict_image(model, picture(1, 1), ROW, amp=False, views=views).labels.shape == (1, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"window": (0, 5)},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"max_size": 0},
        {"batch_statistics": 1.1},
    ],
)
def test_bad_views(settings) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))}: got"):
        Views(**settings)
