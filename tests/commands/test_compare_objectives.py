"""The comparison of training objectives, at a tiny size from end to end."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import cv2
import pytest
import torch
from tiny_run import write_camvid

from deepcrf_ext import compare_objectives as command
from deepcrf_ext.paper.objectives_report import Curve, Point, half_way, table
from deepcrf_ext.records import steps
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model
from deepcrf_ext.records.provenance import package_commit
from deepcrf_ext.records.run_folder import MetricsLog
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

TINY = """
model: {widths: [4, 6], convs: [1, 1], pooled_blocks: 2, head_widths: [5], hidden: 3,
        pairwise_hidden: 8}
data: {dataset: camvid, crop: [24, 32]}
optim: {lr: 0.01}
epochs: 2
start_epochs: 1
batch_size: 2
validate_every: 1
device: cpu
amp: false
modes:
  piecewise: piecewise
  mixed: [{objective: piecewise, share: 0.5}, {objective: end_to_end, share: 0.5, lr_factor: 0.5}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, "train", count=4)
    return write_camvid(folder, "val", count=2)


def options(tmp_path: Path, root: Path, *more: str) -> list[str]:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    output = str(tmp_path / "out")
    return ["--config", str(file), "--data.root", str(root), "--output", output, *more]


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert command.main(options(folder, root)) == 0
    return folder / "out"


def report(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def curves(folder: Path) -> dict:
    return {name: record["result"] for name, record in report(folder)["modes"].items()}


def test_modes_start_alike_and_train_by_their_objectives(finished: Path) -> None:
    modes = curves(finished)
    assert list(modes) == ["piecewise", "mixed"]
    assert modes["piecewise"]["points"][0] == modes["mixed"]["points"][0]
    for mode in modes.values():
        assert [point["step"] for point in mode["points"]] == [0, 2, 4]
        assert (mode["epochs"], mode["steps"], mode["error"]) == (2, 4, None)
    names = [set(point["train_loss"]) for point in modes["mixed"]["points"]]
    assert names == [set(), {"unary", "surrounding", "above_below"}, {"1unary+2pair"}]
    # The first phase of the mixture is what the whole of the other mode begins with.
    assert modes["mixed"]["points"][1] == modes["piecewise"]["points"][1]
    assert modes["mixed"]["points"][2] != modes["piecewise"]["points"][2]


def test_seconds_are_those_of_the_steps(finished: Path) -> None:
    step = report(finished)["start"]["result"]["seconds_per_step"]
    mixed = curves(finished)["mixed"]
    assert all(0 < seconds < 5 for seconds in step.values())
    seconds = [point["seconds"] for point in mixed["points"]]
    assert seconds[1] == pytest.approx(2 * step["piecewise"])
    assert seconds[2] == pytest.approx(2 * step["piecewise"] + 2 * step["end_to_end"])


def test_output_folder(finished: Path) -> None:
    lines = (finished / "comparison.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| piecewise", "| mixed"]
    picture = cv2.imread(str(finished / "comparison.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 500
    model, config, _ = load_model(finished / "mixed")
    assert model.potential_names == ("unary", "surrounding", "above_below")
    assert len(config.phases()) == 2


def test_every_part_says_what_made_it(root: Path, finished: Path, tmp_path: Path) -> None:
    """Also one of several commands, at another commit; the record holds no paths of the machine."""
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "steps" / "mode-mixed.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "package_commit", lambda: "5eed")
        assert command.main(["--resume", str(tmp_path / "out")]) == 0
    old, new = report(finished), report(tmp_path / "out")
    assert new["start"] == old["start"]
    assert new["modes"]["piecewise"] == old["modes"]["piecewise"]
    assert new["modes"]["mixed"]["result"] == old["modes"]["mixed"]["result"]
    assert new["modes"]["mixed"]["commit"] == "5eed"
    assert old["modes"]["mixed"]["commit"] == old["start"]["commit"] == package_commit()
    assert "--resume" in new["modes"]["mixed"]["command"]
    assert "--config" in new["modes"]["piecewise"]["command"]
    assert new["start"]["environment"]["torch"].startswith(torch.__version__)
    assert str(Path(command.__file__).parent) not in json.dumps(new)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 8])
def test_comparison_goes_on_where_it_stopped(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, stop_at
) -> None:
    seen, write = [], MetricsLog.write

    def stopping(self, kind, number, values):
        write(self, kind, number, values)
        seen.append(kind)
        if seen.count("train") == stop_at and kind == "train":
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stopping)
        assert command.main(options(tmp_path, root)) == 143
    assert f"--resume {tmp_path / 'out'}" in capsys.readouterr().err
    assert command.main(["--resume", str(tmp_path / "out")]) == 0
    for mode in ("piecewise", "mixed"):
        own, wanted = (load_checkpoint(f / mode / "last.pt") for f in (tmp_path / "out", finished))
        assert all(torch.equal(own["model"][k], v) for k, v in wanted["model"].items())
    # A finished comparison has nothing left to train.
    monkeypatch.setattr(Trainer, "step", lambda *arguments: pytest.fail("a step"))
    assert command.main(["--resume", str(tmp_path / "out")]) == 0


@pytest.mark.slow
def test_mode_that_diverges_is_reported_and_the_others_go_on(
    root: Path, tmp_path: Path, capsys
) -> None:
    modes = "{wild: piecewise, tame: [{objective: piecewise, lr_factor: 1.0e-32}]}"
    arguments = options(tmp_path, root, "--optim.lr", "1e30", "--model.batch_norm", "false")
    assert command.main([*arguments, "--start_epochs", "0", "--modes", modes]) == 0
    assert "wild: the loss of" in capsys.readouterr().err
    result = curves(tmp_path / "out")
    assert "at step 2" in result["wild"]["error"]
    assert result["wild"]["steps"] == 1
    assert result["tame"]["error"] is None
    assert "| wild (ended: loss not finite) |" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.slow
def test_budget_of_seconds_gives_each_mode_its_epochs(root: Path, tmp_path: Path) -> None:
    settings = command.parse_settings(options(tmp_path, root, "--seconds", "12"))
    comparison = command.Comparison(settings, StopRequest(), "")
    measured = {"per_epoch": 4, "seconds_per_step": {"piecewise": 0.25, "end_to_end": 0.75}}
    epochs = [comparison.mode_config(name, measured).epochs for name in settings.modes]
    assert epochs == [12, 6]
    measured["seconds_per_step"] = {"piecewise": 90.0, "end_to_end": 90.0}
    epochs = [comparison.mode_config(name, measured).epochs for name in settings.modes]
    assert epochs == [1, 2]


def test_the_optimiser_sets_its_learning_rate() -> None:
    adamw = command.parse_settings(["--optim.optimiser", "adamw"]).train.optim
    assert (adamw.lr, adamw.lr_initialised, adamw.weight_decay) == (1e-3, 1e-4, 0.01)
    given = command.parse_settings(["--optim.optimiser", "adamw", "--optim.lr", "0.5"]).train.optim
    assert (given.lr, given.weight_decay) == (0.5, 0.01)


def test_saved_settings_are_a_config_file(root: Path, tmp_path: Path) -> None:
    settings = command.parse_settings(options(tmp_path, root, "--seconds", "12"))
    settings.folder.mkdir()
    settings.write()
    assert command.parse_settings(["--config", str(settings.folder / "config.yaml")]) == settings


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--modes", "{a/b: piecewise}"], "modes: the name 'a/b'"),
        (["--modes", "{start: piecewise}"], "modes: the name 'start'"),
        (["--modes", "{steps: piecewise}"], "modes: the name 'steps'"),
        (["--modes", "{}"], "modes"),
        (["--modes", "{a: fast}"], "fast"),
        (["--modes", "{a: [{objective: piecewise, share: 0}]}"], "share 0"),
        (["--epochs", "1"], "2 phases"),
        (["--seconds", "0"], "seconds"),
        (["--start_epochs", "-1"], "start_epochs"),
        (["--model.potentials", "[unary]"], "start_epochs"),
        (["--model.pairwise_hidden", "5"], "model.pairwise_hidden"),
        (["--resume", "/not/here"], "/not/here"),
    ],
)
def test_bad_option_is_one_line(root: Path, tmp_path: Path, capsys, arguments, named) -> None:
    given = arguments if "--resume" in arguments else options(tmp_path, root, *arguments)
    assert command.main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--data.root", "nowhere"], "data.root: nowhere: does not exist in /"),
        (["--data.crop", "null", "--data.scale-range", "null"], "data.crop: must be set"),
        (["--init-from", "nowhere"], "nowhere is neither a checkpoint nor a run folder"),
    ],
)
def test_a_comparison_that_cannot_begin_leaves_no_folder(
    root: Path, tmp_path: Path, capsys, more, named
) -> None:
    assert command.main(options(tmp_path, root, *more)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_runs_in_one_process(root: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(options(tmp_path, root)) == 2
    assert "without torchrun" in capsys.readouterr().err


def curve(values: list[float], error: str | None = None) -> Curve:
    points = [Point(i, i / 2, 1.0 - v, v, None, {}) for i, v in enumerate(values)]
    return Curve(1, len(values) - 1, len(values) / 2, error, points)


def test_table_says_how_soon_half_of_the_best_gain_is_reached() -> None:
    curves = {"a": curve([0.1, 0.5, 0.4]), "b": curve([0.1, 0.2, 0.7]), "c": curve([0.1], "nan")}
    assert half_way(curves) == pytest.approx(0.4)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(curves).splitlines()
    ]
    assert rows[0][8] == "steps to 40.0"
    assert [row[4:6] + row[8:] for row in rows[2:]] == [
        ["50.0", "40.0", "1", "0"],
        ["70.0", "70.0", "2", "1"],
        ["10.0", "10.0", "-", "-"],
    ]
