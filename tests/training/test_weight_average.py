"""The moving average of weights: its formula, what uses it, and continuing it exactly."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_MODEL, lines, training_options, write_learnable_camvid
from torch import Tensor

from deepcrf_ext import train as command
from deepcrf_ext.data import open_dataset
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.evaluation import before_and_after, evaluate
from deepcrf_ext.merge_checkpoints import main as merge
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model
from deepcrf_ext.records.run_folder import MetricsLog
from deepcrf_ext.training.trainer import Trainer
from deepcrf_ext.training.weight_average import WeightAverage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> DeepCRF:
    torch.manual_seed(0)
    return DeepCRF(TINY_MODEL, 3)


def copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(state[n].equal(other[n]) for n in state)


@torch.no_grad()
def change(model: DeepCRF) -> None:
    for value in model.state_dict().values():
        value.copy_(value + 1 if value.dtype == torch.int64 else torch.randn_like(value))


def test_average_of_weights_and_statistics_by_its_formula(model: DeepCRF) -> None:
    average = WeightAverage(model, 0.25)
    expected = copy(model.state_dict())
    assert any("running_mean" in name for name in expected)
    for step in range(6):
        change(model)
        average.update()
        decay = min(0.25, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15][step])
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value
    own = copy(model.state_dict())
    with average.applied():
        found = copy(model.state_dict())
    torch.testing.assert_close(found, expected)
    assert not equal(found, own)
    assert equal(model.state_dict(), own)
    with pytest.raises(RuntimeError, match="within"), average.applied():
        raise RuntimeError("within")
    assert equal(model.state_dict(), own)


def test_without_a_decay_there_is_no_average(model: DeepCRF) -> None:
    average = WeightAverage(model, 0.0)
    change(model)
    average.update()
    own = copy(model.state_dict())
    with average.applied():
        assert equal(model.state_dict(), own)
    assert average.state().keys() == {"model"}


def test_damaged_weights_of_a_checkpoint_are_named(model: DeepCRF) -> None:
    average = WeightAverage(model, 0.5)
    state = average.state()
    state["live"]["model"].popitem()
    with pytest.raises(InputError, match=r"last\.pt"):
        average.restore(state, Path("last.pt"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable_camvid(tmp_path_factory.mktemp("camvid"), train=5, val=2)


def options(folder: Path, data: Path, *more: str) -> list[str]:
    return training_options(folder, data, folder / "run", "--ema", "0.8", *more)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert command.main(options(folder, data)) == 0
    return folder / "run"


def test_validation_and_checkpoints_are_of_the_average(finished: Path, data: Path) -> None:
    state = load_checkpoint(finished / "last.pt")
    assert not equal(state["model"], state["live"]["model"])
    assert state["live"]["steps"] < state["step"]  # it began anew with the relations
    model, _, _ = load_model(finished / "last.pt")
    assert equal(model.state_dict(), state["model"])
    found = evaluate(
        model, open_dataset("camvid", data, "val"), before_and_after(model), boundaries=False
    ).summary()
    logged = lines(finished, "val")[-1]
    for name, scores in found.items():
        assert logged["nll"][name] == pytest.approx(scores["nll"], rel=1e-6)
        assert logged["mean_iou"][name] == scores["mean_iou"]


def test_relations_that_start_from_the_unary_are_averaged_from_there(
    data: Path, tmp_path: Path
) -> None:
    config = command.parse_new_run(options(tmp_path, data, "--ema", "0.9"))
    sets = [open_dataset(config.data, split=split, seed=0) for split in ("train", "val")]
    trainer = Trainer(config, *sets)
    change(trainer.model)
    trainer.average.update()
    trainer.progress.epoch = 1
    trainer._enter_stage()
    own = copy(trainer.model.state_dict())
    with trainer.average.applied():
        assert equal(trainer.model.state_dict(), own)


@pytest.mark.parametrize("stop_after", [2, 4])
def test_an_interrupted_run_continues_exactly(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    write = MetricsLog.write

    def interrupt(self: MetricsLog, kind: str, step: int, values: Mapping[str, object]) -> None:
        write(self, kind, step, values)
        if (kind, step) == ("train", stop_after):
            signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupt)
        assert command.main(options(tmp_path, data)) == 130
    assert command.main(["--resume", str(run)]) == 0
    assert lines(run, "train") == lines(finished, "train")
    assert lines(run, "val") == lines(finished, "val")
    one, other = (load_checkpoint(folder / "last.pt") for folder in (run, finished))
    assert equal(one["model"], other["model"])
    assert equal(one["live"]["model"], other["live"]["model"])
    assert one["live"]["steps"] == other["live"]["steps"]


def test_the_run_folder_holds_the_weights_alone(finished: Path) -> None:
    model = DeepCRF.from_pretrained(finished / "weights")
    best, _, _ = load_model(finished)
    assert equal(model.state_dict(), best.state_dict())
    assert model.classes == best.classes


def test_what_does_not_go_with_it(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options(tmp_path, data, "--ema", "1")) == 2
    assert "ema: got 1.0, must be at least 0 and below 1" in capsys.readouterr().err
    assert command.main(["--resume", str(finished), "--ema", "0.5"]) == 2
    assert "--ema" in capsys.readouterr().err


def test_a_merged_run_keeps_both_kinds_of_weights(finished: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert merge([str(finished), "--output", str(merged)]) == 0
    one, other = (load_checkpoint(folder / "last.pt") for folder in (finished, merged))
    assert equal(one["model"], other["model"])
    assert equal(one["live"]["model"], other["live"]["model"])
    assert one["live"]["steps"] == other["live"]["steps"]
