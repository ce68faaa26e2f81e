"""What a training keeps and how it goes on, whatever its validations say and whatever stops it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TINY_MODEL, lines

from deepcrf_ext.config import DataConfig, TrainConfig
from deepcrf_ext.data import LabelledPairs
from deepcrf_ext.errors import InputError
from deepcrf_ext.evaluation.evaluation import before_and_after, evaluate
from deepcrf_ext.parallel.world import World
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.records.folder_lock import locked
from deepcrf_ext.training import trainer as training
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Halves:
    """Four bright and dark halves; `seen` is called before each is given."""

    def __init__(self) -> None:
        self.seen = lambda index: None

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.seen(index)
        labels = np.zeros((24, 32), np.uint8)
        labels[:, 6 + 6 * index :] = 1
        return np.repeat(60 + 120 * labels[:, :, None], 3, 2), labels


def make_trainer(val: Halves | None = None, **settings) -> Trainer:
    """Two steps an epoch."""
    data, val_set = (LabelledPairs(of, ("dark", "bright")) for of in (Halves(), val or Halves()))
    settings = {"epochs": 3, "validate_every": 1, "warm_start": 0.0, "amp": False, **settings}
    options = DataConfig(crop=None, flip=False, scale_range=None)
    world = settings.pop("world", World())
    checkpoint = settings.pop("checkpoint", None)
    config = TrainConfig(options, TINY_MODEL, batch_size=2, device="cpu", **settings)
    return Trainer(config, data, val_set, checkpoint=checkpoint, world=world)


MEAN_IOU = (0.9, 0.0, math.nan, 0.3, 0.3, 0.2)
"""Of the whole CRF after each epoch, in the first of which the unary trains alone."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations say `MEAN_IOU`, and that the unary alone is better."""

    def validate(self: Trainer, *_: object) -> dict[str, dict[str, float]]:
        return {"unary": {"mean_iou": 0.99}, "crf": {"mean_iou": MEAN_IOU[self.progress.epoch]}}

    monkeypatch.setattr(Trainer, "validate", validate)


def measured_trainer(checkpoint: Path | None = None) -> Trainer:
    epochs = len(MEAN_IOU)
    return make_trainer(epochs=epochs, warm_start=1 / epochs, checkpoint=checkpoint)


@pytest.mark.usefixtures("measured")
def test_the_best_checkpoint_is_the_first_of_the_highest_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole CRF, once all of it trains; a score of 0 is one, an undefined one is none."""
    saved, save = [], Trainer.save

    def noted(self: Trainer, name: str) -> None:
        save(self, name)
        if name == "best.pt":
            saved.append(self.progress.epoch)

    monkeypatch.setattr(Trainer, "save", noted)
    assert measured_trainer().fit(tmp_path)
    assert saved == [2, 4]
    state = load_checkpoint(tmp_path / "best.pt")
    assert (state["epoch"], state["progress"]["best"]) == (4, 0.3)
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["best"] == 0.3


@pytest.mark.usefixtures("measured")
def test_a_disk_that_fills_up_between_two_checkpoints_loses_no_best_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = training.save_checkpoint, []

    def full(path: Path, state: dict) -> None:
        written.append(state["epoch"])
        if written.count(4) == 2:
            raise OSError("full")
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", full)
        with pytest.raises(OSError, match="full"):
            measured_trainer().fit(tmp_path)
    assert measured_trainer(tmp_path / "last.pt").fit(tmp_path)
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 4


def test_a_run_stopped_while_it_validates_continues_exactly(tmp_path: Path) -> None:
    assert make_trainer().fit(tmp_path / "whole")
    stop, val = StopRequest(), Halves()
    run = tmp_path / "stopped"

    def ask(index: int) -> None:
        if index == 1 and trainer.progress.epoch == 1:
            stop.signal = 2

    trainer = make_trainer(val)
    val.seen = ask
    assert not trainer.fit(run, stop)
    assert [line["epoch"] for line in lines(run, "val")] == [1]
    assert load_checkpoint(run / "last.pt")["step"] == 4
    assert make_trainer(checkpoint=run / "last.pt").fit(run)
    for kind in ("train", "val"):
        assert lines(run, kind) == lines(tmp_path / "whole", kind)
    states = [load_checkpoint(folder / "last.pt") for folder in (run, tmp_path / "whole")]
    one, other = (state["model"] for state in states)
    assert all(one[name].equal(other[name]) for name in other)


def test_validation_computes_as_training_does() -> None:
    trainer = make_trainer(amp=True)
    found = trainer.validate(trainer.model.potential_names, StopRequest())
    model, val_set = trainer.model, trainer.val_set
    mixed, plain = (
        evaluate(model, val_set, before_and_after(model), amp, boundaries=False).summary()
        for amp in (True, False)
    )
    assert found == mixed != plain


def test_every_step_of_every_process_draws_anew() -> None:
    """What dropout leaves out, by the seed of the run."""
    images, labels = torch.rand(2, 3, 24, 32) * 255, torch.randint(0, 2, (2, 24, 32))
    drawn = []
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        trainer = make_trainer(seed=seed, world=World(rank, 1))
        for _ in range(2):
            trainer.step(images, labels)
            drawn.append(torch.initial_seed())
    assert len(set(drawn)) == 6


def test_a_folder_is_one_training_s_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="being written by another process"):
        make_trainer().fit(tmp_path)
    assert not (tmp_path / "last.pt").exists()
