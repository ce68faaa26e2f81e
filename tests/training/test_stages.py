"""Runs of several phases: which epochs each gets, and that a run goes on exactly inside any."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import TINY_MODEL, write_camvid

from deepcrf_ext.config import (
    DataConfig,
    OptimConfig,
    PhaseConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError, TrainingError
from deepcrf_ext.evaluate import main as evaluate
from deepcrf_ext.models import VARIANTS, DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.records.run_folder import MetricsLog, read_metrics
from deepcrf_ext.train import parse_new_run
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.stages import plan_stages
from deepcrf_ext.training.trainer import Trainer

MODEL = replace(TINY_MODEL, potentials="all")
PHASES = (
    PhaseConfig("piecewise"),
    PhaseConfig("pseudo_likelihood"),
    PhaseConfig("end_to_end", 1, 0.5),
)
UNARIES = ("unary", "unary_1scale")


def plan(epochs: int, warm_start: float, *phases: PhaseConfig) -> list[tuple[str, int, int]]:
    """Objective, number of potentials and first epoch of every stage."""
    config = TrainConfig(model=MODEL, epochs=epochs, warm_start=warm_start, objective=phases)
    stages = plan_stages(config, DeepCRF(MODEL, 3))
    return [(stage.objective, len(stage.potentials), stage.first_epoch) for stage in stages]


def test_phases_share_the_epochs_that_the_warm_start_leaves() -> None:
    mixed = PhaseConfig("piecewise", 0.7), PhaseConfig("end_to_end", 0.3)
    assert plan(10, 0.0, *mixed) == [("piecewise", 4, 0), ("end_to_end", 4, 7)]
    assert plan(10, 0.5, *mixed) == [("piecewise", 2, 0), ("piecewise", 4, 5), ("end_to_end", 4, 9)]
    assert plan(1, 0.5, mixed[1]) == [("piecewise", 2, 0), ("end_to_end", 4, 0)]


def test_every_phase_needs_an_epoch() -> None:
    with pytest.raises(InputError, match="3 phases .* do not all get an epoch of 2"):
        plan(4, 0.5, *PHASES)
    with pytest.raises(InputError, match="objective: got no phases, must be at least one"):
        TrainConfig(objective=())
    with pytest.raises(InputError, match="objective: got share 0 of a phase, must be positive"):
        TrainConfig(objective=(PhaseConfig("piecewise", share=0),))
    with pytest.raises(InputError, match="objective: got lr_factor -1.0 of a phase"):
        TrainConfig(objective=(PhaseConfig("piecewise", lr_factor=-1.0),))


def test_objective_on_the_command_line_and_in_files(tmp_path: Path) -> None:
    assert parse_new_run(["--objective", "end_to_end"]).objective == "end_to_end"
    text = "[{objective: piecewise, share: 0.7}, {objective: end_to_end, lr_factor: 0.1}]"
    config = parse_new_run(["--objective", text])
    assert config.objective == (
        PhaseConfig("piecewise", 0.7),
        PhaseConfig("end_to_end", lr_factor=0.1),
    )
    assert from_dict(to_dict(config)) == config
    for wrong in ("fast", "[]", "[{objective: piecewise, share: -1}]"):
        with pytest.raises(InputError, match="objective"):
            parse_new_run(["--objective", wrong])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, "train", count=4)
    return write_camvid(folder, "val", count=2)


def make_trainer(root: Path, **settings) -> Trainer:
    config = TrainConfig(
        DataConfig("camvid", root, crop=(24, 32)),
        MODEL,
        OptimConfig(lr=0.01),
        **{"objective": PHASES, "epochs": 4, "warm_start": 0.25, "batch_size": 2, **settings},
        device="cpu",
    )
    return Trainer(
        config, open_dataset("camvid", root, "train"), open_dataset("camvid", root, "val")
    )


def lines(folder: Path) -> list[dict]:
    return read_metrics(folder)


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps an epoch and four epochs: the unaries, then every objective in turn."""
    folder = tmp_path_factory.mktemp("finished")
    assert make_trainer(root).fit(folder, StopRequest())
    return folder


def test_every_phase_trains_by_its_objective(finished: Path) -> None:
    steps = [line for line in lines(finished) if line["kind"] == "train"]
    names = [set(line["loss"]) for line in steps]
    assert names[:2] == [set(UNARIES)] * 2
    assert names[2:4] == [{*UNARIES, "surrounding", "above_below"}] * 2
    assert names[4:] == [{"1unary+2pair", "unary_1scale"}] * 4
    rates = [0.01 * (1 - step / 8) ** 0.9 for step in range(8)]
    rates[6:] = [rate / 2 for rate in rates[6:]]
    assert [line["lr"] for line in steps] == pytest.approx(rates)


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_run_goes_on_exactly_inside_and_between_phases(
    root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    stop, write = StopRequest(), MetricsLog.write

    def stopping(self, kind, step, values):
        write(self, kind, step, values)
        if (kind, step) == ("train", stop_after):
            stop.signal = 2

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", stopping)
        assert not make_trainer(root).fit(tmp_path, stop)
    trainer = make_trainer(root)
    trainer.restore(tmp_path / "last.pt")
    assert trainer.progress.step == stop_after
    assert trainer.fit(tmp_path, StopRequest())
    assert lines(tmp_path) == lines(finished)
    own, wanted = (load_checkpoint(folder / "last.pt") for folder in (tmp_path, finished))
    for key, value in wanted["model"].items():
        assert torch.equal(own["model"][key], value), key


@pytest.mark.parametrize(("minutes", "within"), [(0.5, [1, 2, 3, 4]), (1.0, [2, 4]), (10.0, [])])
def test_checkpoints_within_an_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, within: list[int]
) -> None:
    """After the step at which the last one is older than `save_minutes`; a step takes 40 s."""
    trainer = make_trainer(
        root, objective="piecewise", epochs=1, warm_start=0.0, batch_size=1, save_minutes=minutes
    )
    clock = SimpleNamespace(monotonic=lambda: 40.0 * trainer.progress.step)
    saved, save = [], Trainer.save

    def recorded(self: Trainer, name: str) -> None:
        save(self, name)
        if self.progress.batch:
            saved.append(self.progress.step)

    monkeypatch.setattr("deepcrf_ext.training.trainer.time", clock)
    monkeypatch.setattr(Trainer, "save", recorded)
    assert trainer.fit(tmp_path, StopRequest())
    assert saved == within


def test_a_phase_goes_on_with_the_relations_of_the_one_before(root: Path) -> None:
    """They start from the unary once, with the first phase that trains them."""
    trainer = make_trainer(root, ema=0.5)
    trainer.progress.stage, trainer.progress.epoch = 1, 2
    trainer.average.steps = 7
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._enter_stage()
    assert trainer.stages[trainer.progress.stage].objective == "pseudo_likelihood"
    for name, value in trainer.model.state_dict().items():
        assert value.equal(before[name]), name
    assert trainer.average.steps == 7


def test_a_longer_run_stays_in_the_phase_it_has_reached(root: Path, finished: Path) -> None:
    trainer = make_trainer(root, epochs=20)
    trainer.restore(finished / "last.pt")
    trainer._enter_stage()
    assert trainer.stages[trainer.progress.stage].objective == "end_to_end"


def test_every_row_is_predicted_after_any_objective(finished: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(finished), "--rows", "all", "--output", str(tmp_path / "out")]
    assert evaluate(arguments) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(result["rows"]) >= set(VARIANTS)


@pytest.mark.parametrize("objective", ["pseudo_likelihood", "end_to_end"])
def test_a_crf_loss_that_is_not_finite_is_named(root: Path, tmp_path: Path, objective: str) -> None:
    trainer = make_trainer(root, objective=objective, warm_start=0.0)
    with torch.no_grad():
        list(trainer.model.potentials.values())[2].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss of 1unary\+2pair is nan at step 1"):
        trainer.fit(tmp_path, StopRequest())
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 0
