"""The training command: what a run leaves, continuing it exactly, and what can interrupt it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tiny_run import lines, training_options, write_learnable_camvid

from deepcrf_ext import train as command
from deepcrf_ext.config import from_dict
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model
from deepcrf_ext.records.provenance import package_commit
from deepcrf_ext.records.run_folder import MetricsLog

pytestmark = pytest.mark.usefixtures("one_thread")

POTENTIALS = {"unary", "surrounding", "above_below"}
UNARY, CRF = "unary-3scales", "1unary+2pair"
STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable_camvid(tmp_path_factory.mktemp("camvid"), train=7, val=2)


def same_weights(run: Path, other: Path) -> bool:
    a, b = (load_checkpoint(folder / "last.pt")["model"] for folder in (run, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same_as_checkpoint(run: Path, name: str) -> None:
    """weights/ holds what a checkpoint does."""
    model = DeepCRF.from_pretrained(run / "weights")
    state = load_checkpoint(run / name)
    assert model.classes == state["classes"]
    assert all(value.equal(state["model"][key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert command.main(training_options(folder, data, folder / "run")) == 0
    return folder / "run"


def test_run_folder(finished, data):
    config = from_dict(yaml.safe_load((finished / "config.yaml").read_text()))
    assert config.data.root == data
    steps = lines(finished, "train")
    assert [line["step"] for line in steps] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    warm = [line["loss"].keys() for line in steps[:STEPS_PER_EPOCH]]
    assert warm == [{"unary"}] * STEPS_PER_EPOCH
    assert all(line["loss"].keys() == POTENTIALS for line in steps[STEPS_PER_EPOCH:])
    rates = [0.02 * (1 - done / len(steps)) ** 0.9 for done in range(len(steps))]
    assert [line["lr"] for line in steps] == pytest.approx(rates)
    measured = lines(finished, "val")
    assert [line["epoch"] for line in measured] == [1, 2, 3]
    for index, line in enumerate(measured):
        epoch = steps[index * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH]
        means = {name: np.mean([step["loss"][name] for step in epoch]) for name in epoch[0]["loss"]}
        assert line["train_loss"] == pytest.approx(means)
    assert [set(line["mean_iou"]) for line in measured] == [{UNARY}, *[{UNARY, CRF}] * 2]
    for name in POTENTIALS:
        first = next(line["loss"][name] for line in steps if name in line["loss"])
        assert measured[-1]["train_loss"][name] < first
    best = max((1, 2), key=lambda i: measured[i]["mean_iou"][CRF])
    kept = load_checkpoint(finished / "best.pt")["progress"]["best"]
    assert kept == measured[best]["mean_iou"][CRF]
    assert load_model(finished)[2]["epoch"] == best + 1
    assert list(finished.glob("events.out.tfevents.*"))
    (start,) = json.loads((finished / "run.json").read_text())["starts"]
    assert start["command"].startswith("python ")
    assert (start["step"], start["device"], start["processes"]) == (0, "cpu", 1)
    assert start["commit"] == package_commit()
    assert {"torch", "deepcrf_ext", "Python", "packages", "CPU"} <= start["environment"].keys()
    same_as_checkpoint(finished, "best.pt")
    grid = cv2.imread(str(finished / "grid.png"))
    assert grid is not None
    assert grid.shape[0] > 100


@pytest.mark.parametrize("stop_after", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_continues_as_if_nothing_had_happened(
    finished, data, tmp_path, monkeypatch, capsys, stop_after, number
):
    run = tmp_path / "a run"
    write = MetricsLog.write

    def interrupt(self, kind, step, values):
        write(self, kind, step, values)
        if (kind, step) == ("train", stop_after):
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupt)
        assert command.main(training_options(tmp_path, data, run)) == 128 + number
    assert f"--resume '{run}'" in capsys.readouterr().err
    assert load_checkpoint(run / "last.pt")["step"] == stop_after
    same_as_checkpoint(run, "last.pt")
    # Lines that a killed run wrote after its checkpoint are written again, not twice.
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": stop_after + 1}) + '\n{"kind": "tr')
    assert command.main(["--resume", str(run), "--data.workers", "1"]) == 0
    assert f", step {stop_after + 1}/{3 * STEPS_PER_EPOCH}: loss" in capsys.readouterr().err
    assert lines(run, "train") == lines(finished, "train")
    assert lines(run, "val") == lines(finished, "val")
    assert same_weights(run, finished)
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, stop_after]
    same_as_checkpoint(run, "best.pt")


def test_epochs_are_measured_now_and_then_and_in_the_end(data, tmp_path):
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--validate-every", "2")
    assert command.main(arguments) == 0
    assert [line["epoch"] for line in lines(run, "val")] == [2, 3]


@pytest.mark.slow
def test_a_run_cannot_be_made_shorter_than_it_is(finished, capsys):
    settings = (finished / "config.yaml").read_bytes()
    assert command.main(["--resume", str(finished), "--epochs", "1"]) == 2
    assert "error: epochs: got 1, must be at least the 3 of" in capsys.readouterr().err
    assert (finished / "config.yaml").read_bytes() == settings


def test_longer_run_goes_on_from_a_finished_one(finished, tmp_path, data):
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--optim.schedule", "exponential")
    assert command.main(arguments) == 0
    assert command.main(["--resume", str(run / "last.pt"), "--epochs", "4"]) == 0
    assert [line["epoch"] for line in lines(run, "val")] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_from_outside(data, tmp_path, whole_group):
    """Also where a launcher asks every process of a group: loaders hand over what is needed."""
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--epochs", "100000", "--data.workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "deepcrf_ext.train", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    metrics = run / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert f"--resume {run}" in errors
    assert load_checkpoint(run / "last.pt")["step"] == lines(run, "train")[-1]["step"]


@pytest.mark.slow
def test_killed_loader_process_ends_the_run_and_nothing_is_lost(
    finished, data, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    write = MetricsLog.write

    def kill_a_loader(self, kind, step, values):
        write(self, kind, step, values)
        if (kind, step) == ("train", STEPS_PER_EPOCH + 1):
            for loader in multiprocessing.active_children():
                os.kill(loader.pid, signal.SIGKILL)
            time.sleep(60)  # torch interrupts it

    begin = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", kill_a_loader)
        assert command.main(training_options(tmp_path, data, run, "--data.workers", "2")) == 1
    assert time.monotonic() - begin < 50
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: a process that loads images ended (DataLoader worker (pid")
    assert last.endswith(f"all can go on with --resume {run}")
    assert load_checkpoint(run / "last.pt")["step"] == STEPS_PER_EPOCH
    assert command.main(["--resume", str(run)]) == 0
    assert lines(run, "train") == lines(finished, "train")
    assert same_weights(run, finished)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--optim.lr", "--config", "--data.jiter"])
def test_what_a_resumed_run_does_not_take(finished, capsys, option):
    before = files_of(finished)
    assert command.main(["--resume", str(finished), option, "0.1"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: unrecognized arguments: {option} 0.1; ")
    assert "beside --resume only --epochs, --device, --data.root and --data.workers can" in errors
    assert errors.count("\n") == 1
    assert files_of(finished) == before


def test_a_run_never_overwrites_another(finished, data, tmp_path, capsys):
    before = files_of(finished)
    assert command.main(training_options(tmp_path, data, finished)) == 2
    assert f"output: {finished}" in capsys.readouterr().err
    assert files_of(finished) == before


def test_loss_that_is_not_finite(data, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--optim.lr", "1e30")
    assert command.main([*arguments, "--model.batch_norm", "false"]) == 1
    errors = capsys.readouterr().err
    message = errors[errors.index("error: ") :]
    assert message.startswith("error: the loss of ")
    assert message.count("\n") == 1
    assert "at step 2" in message
    assert any(name in message for name in POTENTIALS)
    assert load_checkpoint(run / "last.pt")["step"] == 0


def test_disk_that_fills_up_in_training(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    sync, written = os.fsync, []

    def full_after_the_first_checkpoint(handle: int) -> None:
        written.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        if written.count(".last.pt.partial") > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full_after_the_first_checkpoint)
    assert command.main(training_options(tmp_path, data, run)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "last.pt: cannot write the checkpoint (No space left on device)" in last
    assert last.endswith(f"; mended, it can go on with --resume {run}")
    assert load_checkpoint(run / "last.pt")["step"] == 0


def test_disk_that_is_full_before_training(data, tmp_path, monkeypatch, capsys):
    """The mended command may take the name of the run."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(command.Trainer, "save", lambda *_: full(0))
        assert command.main(training_options(tmp_path, data, run)) == 2
    assert capsys.readouterr().err.endswith("error: No space left on device\n")
    assert not run.exists()


def test_checkpoint_of_another_model_is_not_continued(data, tmp_path, finished, capsys):
    state = load_checkpoint(finished / "last.pt")
    state["config"]["model"]["hidden"] = 9
    run = tmp_path / "run"
    run.mkdir()
    torch.save(state, run / "last.pt")
    assert command.main(["--resume", str(run)]) == 2
    assert "last.pt: potentials." in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["optimiser"]["param_groups"].pop(),
        lambda state: state["progress"].update(later=1),
        lambda state: state.pop("class_weights"),
    ],
)
def test_a_run_of_another_version_is_not_continued(tmp_path, finished, capsys, change):
    state = load_checkpoint(finished / "last.pt")
    change(state)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(state, run / "last.pt")
    assert command.main(["--resume", str(run), "--epochs", "9"]) == 2
    assert "of a version whose runs cannot be continued" in capsys.readouterr().err


def copied(data: Path, root: Path) -> Path:
    shutil.copytree(data, root)
    return root


def test_a_bad_file_of_any_split_is_named_before_training(tmp_path, data, capsys):
    root = copied(data, tmp_path / "broken")
    for index in range(2):
        path = root / "valannot" / f"{index}.png"
        height, width = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
        cv2.imwrite(str(path), np.full((height, width, 3), (1, 2, 3), np.uint8))
    assert command.main(training_options(tmp_path, root, tmp_path / "run")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: 2 problems: {root / 'valannot' / '0.png'}: ")
    assert f"; {root / 'valannot' / '1.png'}: " in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_file_that_breaks_in_training_is_named_with_how_to_go_on(
    finished, tmp_path, data, monkeypatch, capsys, workers
):
    root, run = copied(data, tmp_path / "data"), tmp_path / "run"
    write = MetricsLog.write

    def break_files(self, kind, step, values):
        write(self, kind, step, values)
        if (kind, step) == ("train", STEPS_PER_EPOCH):
            for path in (root / "train").iterdir():
                path.write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", break_files)
        assert command.main(training_options(tmp_path, root, run, "--data.workers", workers)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {root / 'train'}")
    assert last.endswith(f"it can go on with --resume {run}")
    shutil.rmtree(root)
    copied(data, root)
    assert command.main(["--resume", str(run)]) == 0
    assert same_weights(run, finished)


def test_a_batch_of_one_value_leaves_no_run(tmp_path, data, capsys):
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--model.batch_norm", "true")
    assert command.main([*arguments, "--batch_size", "1", "--data.crop", "[4, 4]"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: batch normalisation: got one image with a map of 1 x 1")
    assert "raise batch_size or data.crop" in last
    assert not run.exists()
    assert command.main(arguments) == 0


def test_a_crop_of_too_many_edges_is_told_before_training(tmp_path, data, capsys):
    run = tmp_path / "run"
    arguments = training_options(tmp_path, data, run, "--data.crop", "[9000, 9000]")
    assert command.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: data.crop: got [9000, 9000], 2 at a time, too large. ")
    assert re.search(r"has [\d,]{13,} edges, [\d,.]+ GB", last)
    assert not run.exists()


def test_images_of_several_sizes_need_a_crop(tmp_path, data, capsys):
    arguments = training_options(tmp_path, data, tmp_path / "run", "--data.crop", "null")
    assert command.main(arguments) == 2
    assert "data.crop" in capsys.readouterr().err.splitlines()[-1]


def test_adamw_has_defaults_of_its_own_and_continues(data, tmp_path):
    adamw = ["--optim.optimiser", "adamw", "--optim.schedule", "cosine", "--optim.warm_up", "1"]
    config = command.parse_new_run(adamw)
    assert (config.optim.lr, config.optim.lr_initialised) == (1e-3, 1e-4)
    assert command.parse_new_run([*adamw, "--optim.lr", "0.002"]).optim.lr == 0.002
    jitter = ["--data.jitter", "0.4", "--data.hue", "0.05"]
    cold = ["--warm_start", "0"]
    runs = [tmp_path / name for name in ("whole", "halves")]
    for run, epochs in zip(runs, ("3", "2"), strict=True):
        arguments = training_options(tmp_path, data, run, *adamw, *jitter, "--epochs", epochs)
        assert command.main([*arguments, "--optim.schedule", "exponential", *cold]) == 0
    assert command.main(["--resume", str(runs[1]), "--epochs", "3"]) == 0
    assert same_weights(*runs)
    state = load_checkpoint(runs[0] / "last.pt")["optimiser"]
    assert "exp_avg_sq" in state["state"][0]
