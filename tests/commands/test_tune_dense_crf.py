"""The search for parameters of the dense CRF."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from dense_problems import scene
from PIL import Image

from deepcrf_ext import DenseCRFParams
from deepcrf_ext.data import open_dataset, to_tensors
from deepcrf_ext.evaluate import main as evaluate_main
from deepcrf_ext.evaluation import dense_crf_search
from deepcrf_ext.evaluation.boundaries import BoundaryF1
from deepcrf_ext.evaluation.dense_crf_search import (
    BOUNDS,
    ModelProblem,
    Problem,
    Trial,
    TrialImage,
    TrialScores,
    best_trial,
    draw,
    search,
)
from deepcrf_ext.evaluation.regions import SegmentationMetrics
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.models.refine import NUMBERS, DenseCRFSettings
from deepcrf_ext.models.refine_tiles import bytes_needed
from deepcrf_ext.ops.dense_crf_params import PRESETS
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.refine import main as refine_main
from deepcrf_ext.tune_dense_crf import main


def test_scores_are_those_of_the_models_prediction(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config, _ = load_model(run)
    dataset = open_dataset("camvid", config.data.root, "val")
    problem = ModelProblem(model, VARIANTS["1unary+2pair"], dataset, [0, 2], amp=False)
    other = DenseCRFParams(2, 1, 8, 40, 6)
    settings = [
        DenseCRFSettings(params, 3)
        for params in (DenseCRFParams(), DenseCRFParams(bilateral_weight=30), other)
    ]
    built = []
    build = dense_crf_search.build_lattices
    monkeypatch.setattr(
        dense_crf_search, "build_lattices", lambda *args: built.append(args) or build(*args)
    )
    steps = []
    before, after = problem.score(settings, lambda: steps.append(1))
    assert len(steps) == 6
    assert len(built) == 4, "the first two settings share the lattices of each of two images"
    for chosen, scores in zip([None, *settings], [before, *after], strict=True):
        regions, boundaries = SegmentationMetrics(11), BoundaryF1(11)
        for index in (0, 2):
            image, truth = to_tensors(dataset[index])
            row = "1unary+2pair" if chosen is None else "full"
            with torch.no_grad():
                labels = model.predict(image[None], row, dense_crf=chosen)[0].argmax(0)
            regions.update(labels, truth)
            boundaries.update(labels.numpy(), truth.numpy())
        assert scores.mean_iou == regions.compute().mean_iou
        assert scores.pixel_accuracy == regions.compute().pixel_accuracy
        assert scores.boundary_f1 == boundaries.compute().mean_f1
    assert len({scores.mean_iou for scores in (before, *after)}) > 2


def test_large_images_are_tried_in_tiles() -> None:
    unary, image = scene(150, 200, 3)
    truth = unary[0].argmin(0).roll(2, 1)

    class Large(Problem):
        num_classes = 3
        device = torch.device("cpu")

        def images(self) -> Iterator[TrialImage]:
            def energies(rows: slice, columns: slice) -> torch.Tensor:
                seen.append((rows.stop - rows.start) * (columns.stop - columns.start))
                return unary[0, :, rows, columns]

            yield TrialImage(image[0], energies, unary[0].argmin(0), truth)

    seen: list[int] = []
    problem = Large()
    settings = [DenseCRFSettings(DenseCRFParams(2, w, 10, 13, w), 3) for w in (1, 9)]
    found = []
    for short in (0, 1):
        problem.memory = bytes_needed(150 * 200, 3) - short
        found.append(problem.score(settings, lambda: None))
    assert seen[0] == 150 * 200
    assert len(seen) > 3
    assert max(seen[1:]) < 150 * 200
    assert found[0][0] == found[1][0]
    for whole, tiles in zip(found[0][1], found[1][1], strict=True):
        assert abs(whole.mean_iou - tiles.mean_iou) < 1e-3
        assert whole.mean_iou != found[0][0].mean_iou


def test_trials_are_drawn_around_the_best_within_bounds() -> None:
    best = DenseCRFParams(0.6, 3, 290, 13, 10)
    drawn = draw(best, 0.5, 11, np.random.default_rng(0))
    assert len(drawn) == 11
    widths = [(p.gaussian_sxy, p.bilateral_sxy, p.bilateral_srgb) for p in drawn]
    assert widths[:4] == [(0.6, 290, 13)] * 4
    assert [len(set(widths[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(widths)) == 3
    assert len({p.bilateral_weight for p in drawn}) == 11
    wild = draw(best, 10, 40, np.random.default_rng(0))
    for name, (low, high) in BOUNDS.items():
        values = [getattr(params, name) for params in wild]
        assert low <= min(values) <= max(values) <= high
    assert draw(best, 0, 1, np.random.default_rng(0)) == [best]
    assert tuple(BOUNDS) == NUMBERS


def test_rounds_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets, then trials around the best so far, from wide to narrow, as many as asked."""

    class Known(Problem):
        def __len__(self) -> int:
            return 1

        def score(self, settings: Sequence[DenseCRFSettings], progress: Any) -> Any:
            ious = [1 / (1 + abs(s.params.bilateral_weight - 20)) for s in settings]
            return TrialScores(0.01, 0.5, 0.5), [TrialScores(iou, 0.5, 0.5) for iou in ious]

    drawn: list[tuple[DenseCRFParams, float, int]] = []

    def record(best: DenseCRFParams, spread: float, count: int, generator: Any) -> Any:
        drawn.append((best, spread, count))
        return draw(best, spread, count, generator)

    monkeypatch.setattr(dense_crf_search, "draw", record)
    rounds: list[list[Trial]] = []
    before, trials = search(
        Known(), 30, 4, "mean_iou", 0, lambda _, tried: rounds.append(list(tried))
    )
    assert before.mean_iou == 0.01
    assert [trial.round for trial in trials] == [0] * 2 + [1] * 12 + [2] * 12 + [3] * 4
    assert [trial.settings.params for trial in trials[:2]] == list(dict.fromkeys(PRESETS.values()))
    assert {trial.settings.iterations for trial in trials} == {4}
    assert rounds == [trials[:count] for count in (2, 14, 26, 30)]
    assert [count for _, _, count in drawn] == [12, 12, 4]
    for (best, spread, _), tried in zip(drawn, rounds, strict=False):
        assert best == best_trial(tried, "mean_iou").settings.params
        assert spread == pytest.approx(0.9 * 0.2 ** (len(tried) / 30))
    assert best_trial(trials, "mean_iou").scores.mean_iou > 0.3
    assert search(Known(), 30, 4, "mean_iou", 0, lambda *_: None)[1] == trials
    assert search(Known(), 1, 4, "mean_iou", 0, lambda *_: None)[1] == trials[:1]


def test_command_writes_what_evaluate_reads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(run), "--trials", "9", "--images", "2", "--iterations", "2"]
    records = []
    for name, seed in (("a", "1"), ("again", "1"), ("b ü", "2")):
        assert main([*arguments, "--seed", seed, "--output", str(tmp_path / name)]) == 0
        records.append(json.loads((tmp_path / name / "trials.json").read_text()))
    printed = capsys.readouterr().out
    assert f"--dense-crf-params '{tmp_path / 'b ü' / 'dense_crf.json'}'" in printed
    first, again, other = (record["trials"] for record in records)
    assert first == again != other
    assert len(first) == len(other) == 9
    assert first[:2] == other[:2], "the presets come first"
    assert [trial["bilateral_srgb"] for trial in first[:2]] == [13, 3]
    record = records[0]
    assert record["data"]["images"] == 2
    assert record["command"].startswith("python -m deepcrf_ext.tune_dense_crf --checkpoint")
    assert record["best"] == max(first, key=lambda trial: trial["mean_iou"])
    best = json.loads((tmp_path / "a" / "dense_crf.json").read_text())
    assert best == {name: record["best"][name] for name in best}
    assert best["iterations"] == 2
    assert set(best) == {*NUMBERS, "iterations"}
    assert f"{100 * record['best']['mean_iou']:.2f}" in printed
    assert cv2.imread(str(tmp_path / "a" / "trials.png")) is not None

    evaluation = ["--checkpoint", str(run), "--rows", "full", "--output", str(tmp_path / "e")]
    params = ["--dense-crf-params", str(tmp_path / "a" / "dense_crf.json")]
    assert evaluate_main([*evaluation, *params]) == 0
    report = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert report["dense_crf"] == best


def test_objective_chooses_the_best(run: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(run), "--trials", "6", "--dense-crf-iterations", "2"]
    assert main([*arguments, "--objective", "boundary_f1", "--output", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "trials.json").read_text())
    assert record["best"]["boundary_f1"] == max(t["boundary_f1"] for t in record["trials"])


def test_ends_with_what_was_found_when_interrupted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dense_crf_search, "draw", interrupt)
    arguments = ["--checkpoint", str(run), "--images", "1", "--iterations", "1"]
    assert main([*arguments, "--output", str(tmp_path)]) == 130
    assert len(json.loads((tmp_path / "trials.json").read_text())["trials"]) == 2
    params = DenseCRFSettings.read(tmp_path / "dense_crf.json").params
    assert params in PRESETS.values()


def test_undefined_scores_are_the_lowest() -> None:
    scores = [TrialScores(value, 0.5, 0.5) for value in (float("nan"), 0.1, 0.3, 0.3)]
    settings = DenseCRFSettings()
    trials = [
        Trial(0, replace(settings, iterations=index), score) for index, score in enumerate(scores)
    ]
    assert best_trial(trials, "mean_iou") is trials[2]
    assert trials[0].as_dict()["mean_iou"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "trials"),
        (["--images", "-3"], "images"),
        (["--objective", "recall"], "objective"),
        (["--row", "everything"], "row: got 'everything', must be one of"),
        (["--data.split", "nope"], "split: got 'nope'"),
        (["--data.root", "missing-folder"], "missing-folder"),
        (["--checkpoint", "missing-run"], "missing-run"),
    ],
)
def test_bad_arguments_end_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--checkpoint", str(run), *arguments]) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert message in errors
    assert "\n" not in errors


def test_help_names_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "dense_crf.json" in capsys.readouterr().out


ONE_TRIAL = ["--trials", "1", "--iterations", "0", "--device", "cpu"]


def write_stripes(root: Path) -> list[str]:
    """Images of three stripes with noisy masks and the truth, as options of the command."""
    rng = np.random.default_rng(0)
    truth = np.repeat((np.arange(48) // 16)[None], 36, 0).astype(np.uint8)
    for name in ("a", "b"):
        image = 80 * truth[..., None] + rng.integers(0, 9, (36, 48, 3))
        noise = rng.random(truth.shape) < 0.2
        wrong = np.where(noise, rng.integers(0, 3, truth.shape), truth)
        for folder, array in (("image", image), ("mask", wrong), ("truth", truth)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(root / folder / f"{name}.png")
    folders = [(f"--{folder}-folder", str(root / folder)) for folder in ("image", "mask", "truth")]
    return [*(word for option in folders for word in option), "--output", str(root / "out")]


def refine(root: Path, *options: str) -> int:
    """The command refine over the same files."""
    inputs = [str(root / "image"), str(root / "mask"), "--truth", str(root / "truth")]
    return refine_main([*inputs, "--output", str(root / "refined"), *options])


def test_masks_of_any_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a checkpoint; the parameters are better than none and those refine takes."""
    options = [*write_stripes(tmp_path), "--trials", "4", "--iterations", "3", "--device", "cpu"]
    assert main(options) == 0
    record = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert record["best"]["mean_iou"] > record["before"]["mean_iou"]
    assert record["masks"]["num_classes"] == 3
    assert refine(tmp_path, "--dense-crf-params", str(tmp_path / "out" / "dense_crf.json")) == 0
    assert f"{100 * record['best']['mean_iou']:.2f} % after" in capsys.readouterr().out


def test_the_command_that_follows_reads_masks_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["--certainty", "0.6", "--unsure", "null", "--mask-pattern", "{name}.png"]
    assert main([*write_stripes(tmp_path), *kept, *ONE_TRIAL]) == 0
    arguments = shlex.split(capsys.readouterr().out.split("python -m deepcrf_ext.refine ")[1])
    assert [arguments[arguments.index(name) + 1] for name in kept[::2]] == kept[1::2]
    arguments[arguments.index("REFINED")] = str(tmp_path / "refined")
    assert refine_main(arguments) == 0


def test_masks_that_are_unsure_are_scored_as_by_refine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_stripes(tmp_path)
    mask = np.array(Image.open(tmp_path / "mask" / "a.png"))
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask" / "a.png")
    assert main([*options, *ONE_TRIAL]) == 0
    before = json.loads((tmp_path / "out" / "trials.json").read_text())["before"]
    assert refine(tmp_path) == 0
    assert f"{100 * before['mean_iou']:.2f} % before" in capsys.readouterr().out


def test_masks_without_an_image_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = write_stripes(tmp_path)
    (tmp_path / "image" / "a.png").unlink()
    assert main([*options, *ONE_TRIAL]) == 0
    assert re.search(r"^left out: .*a.png: mask without image$", capsys.readouterr().err, re.M)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "null"], "--output, must be given"),
        (["--checkpoint", "run"], "--image-folder: goes without --checkpoint"),
        (["--row", "full"], "--row: goes with --checkpoint"),
        (["--truth-folder", "image", "--truth-pattern", "sub/**"], "holds no truth"),
    ],
)
def test_options_that_masks_do_not_go_with(
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*write_stripes(tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


def test_options_of_masks_go_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", "run", "--certainty", "0.5"]) == 2
    assert "--certainty: goes without --checkpoint" in capsys.readouterr().err
