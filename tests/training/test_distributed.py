"""Training and evaluation in two processes, over gloo: the same results as in one, and no hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny_run import lines, training_options, write_learnable_camvid, write_run
from torch import nn

from deepcrf_ext import evaluate, train
from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.parallel.world import GradientSum, World, join
from deepcrf_ext.records.checkpoint import load_checkpoint
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.loader import epoch_batches
from deepcrf_ext.training.trainer import Trainer

STEPS_PER_EPOCH = 2
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More void in some images than in others."""
    return write_learnable_camvid(tmp_path_factory.mktemp("camvid"), train=7, val=3, void=6)


def options(folder: Path, data: Path, output: Path, *more: str) -> list[str]:
    return training_options(folder, data, output, "--batch-size", "3", "--amp", "false", *more)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")["model"]


def train_in(rank: int, arguments: list[str]) -> int:
    return train.main(arguments)


def train_backbone_in(rank: int, data: Path, output: Path) -> int:
    """Trains a model with a backbone made in Python, alone and together: the same weights."""
    sets = [open_dataset("camvid", data, split) for split in ("train", "val")]
    settings = DataConfig(crop=(32, 40))
    config = TrainConfig(settings, epochs=1, batch_size=6, device="cpu", amp=False, warm_start=0)

    def trained(world: World, folder: Path) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
        )
        model = DeepCRF(ModelConfig(hidden=8, pairwise_hidden=16), sets[0].num_classes, backbone)
        assert Trainer(config, *sets, model, world=world).fit(folder, StopRequest())
        return model.state_dict()

    alone = trained(World(), output / f"alone-{rank}")
    with join("cpu") as world:
        together = trained(world, output / "together")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5)
    return 0


def train_killed_in(
    rank: int, arguments: list[str], victim: int, step: int, number: int, where: str = "step"
) -> int:
    """Training in which one process gets a signal in the middle of a step."""
    make_weights, sums = Trainer._part_weights, World.sum
    calls = {"step": 0, "normalisation": 0}
    # The first exchange of a step counts nodes, those of nine normalisations follow, and then
    # those of their backward passes.
    fatal = {"step": 1, "normalisation": 15}

    def reached(place: str) -> None:
        if rank == victim and place == where and current == [step]:
            calls[place] += 1
            if calls[place] == fatal[place]:
                os.kill(os.getpid(), number)

    current: list[int] = []

    def part_weights(self, objective, parts):
        current[:] = [self.progress.step]
        reached("step")
        return make_weights(self, objective, parts)

    def exchange(self, tensor):
        reached("normalisation")
        return sums(self, tensor)

    Trainer._part_weights, World.sum = part_weights, exchange
    return train.main(arguments)


def test_a_backbone_normalises_by_the_whole_batch(data: Path, tmp_path: Path) -> None:
    codes = run_processes(train_backbone_in, [data, tmp_path], tmp_path / "out")
    assert codes == [0, 0], (tmp_path / "out" / "0.txt").read_text()


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, with batch normalisation."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = options(folder, data, folder / "run")
    assert run_processes(train_in, [arguments], folder / "out") == [0, 0]
    assert "2 processes" in (folder / "out" / "0.txt").read_text()
    assert (folder / "out" / "1.txt").read_text() == ""
    return folder / "run"


@pytest.mark.parametrize(
    ("batch_norm", "accumulate", "amp", "precision"),
    [
        ("true", "1", "false", 2e-5),
        pytest.param("false", "2", "false", 1e-5, marks=pytest.mark.slow),
        pytest.param("true", "1", "true", 2e-2, marks=pytest.mark.slow),
    ],
)
def test_same_trajectory_as_one_process(data, tmp_path, batch_norm, accumulate, amp, precision):
    more = ["--model.batch_norm", batch_norm, "--accumulate", accumulate, "--amp", amp]
    runs = [tmp_path / "one", tmp_path / "two"]
    assert train.main(options(tmp_path, data, runs[0], *more)) == 0
    arguments = options(tmp_path, data, runs[1], *more)
    assert run_processes(train_in, [arguments], tmp_path / "out") == [0, 0]
    one, two = (lines(run, "train") for run in runs)
    assert len(one) == len(two) == 3 * STEPS_PER_EPOCH
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=precision)
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(
            weights(runs[1])[name], value, rtol=10 * precision, atol=precision
        )
    one, two = (lines(run, "val") for run in runs)
    for a, b in zip(one, two, strict=True):
        assert b["pixel_accuracy"] == pytest.approx(a["pixel_accuracy"], abs=precision)


def check_resumes_to(finished: Path, run: Path, output: Path) -> None:
    """Going on with the run gives just what the run that nothing ended gave."""
    arguments = [["--resume", str(run), "--data.workers", "1"]]
    assert run_processes(train_in, arguments, output) == [0, 0]
    assert lines(run, "train") == lines(finished, "train")
    assert lines(run, "val") == lines(finished, "val")
    expected = weights(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert not list(run.glob(".*"))


@pytest.mark.slow
def test_killed_process_ends_the_run_and_nothing_is_lost(finished, data, tmp_path):
    run, other, victim = tmp_path / "run", 0, 1
    last_of_an_epoch = 2 * STEPS_PER_EPOCH - 1
    arguments = [
        options(tmp_path, data, run),
        victim,
        last_of_an_epoch,
        signal.SIGKILL,
        "normalisation",
    ]
    codes = run_processes(train_killed_in, arguments, tmp_path / "out")
    assert codes[victim] == -signal.SIGKILL
    assert codes[other] == 1
    last = (tmp_path / "out" / f"{other}.txt").read_text().splitlines()[-1]
    assert last.startswith(f"error: process {other} of 2 lost another one")
    assert f"--resume {run}" in last
    assert load_checkpoint(run / "last.pt")["step"] == STEPS_PER_EPOCH
    check_resumes_to(finished, run, tmp_path / "again")


@pytest.mark.slow
def test_one_process_asked_to_stop_stops_all_and_one_goes_on(finished, data, tmp_path):
    run = tmp_path / "run"
    arguments = [options(tmp_path, data, run), 1, 2, signal.SIGTERM]
    codes = run_processes(train_killed_in, arguments, tmp_path / "out")
    assert codes == [143, 143]
    assert load_checkpoint(run / "last.pt")["step"] == 3
    assert train.main(["--resume", str(run)]) == 0
    own, expected = lines(run, "train"), lines(finished, "train")
    assert own[:3] == expected[:3]
    for a, b in zip(own, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)


def test_batch_must_hold_an_image_for_each_process(data, tmp_path, capsys, monkeypatch):
    arguments = [options(tmp_path, data, tmp_path / "run", "--batch_size", "1")]
    assert run_processes(train_in, arguments, tmp_path / "out") == [2, 2]
    error = (tmp_path / "out" / "1.txt").read_text()
    assert error.startswith("error: batch_size: 1")
    assert "2 processes" in error


def evaluate_in(rank: int, arguments: list[str]) -> int:
    return evaluate.main(arguments)


def test_sharded_evaluation_is_exact(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "data")
    arguments = ["--checkpoint", str(run), "--rows", "all", "--device", "cpu", "--output"]
    assert evaluate.main([*arguments, str(tmp_path / "one")]) == 0
    together = [[*arguments, str(tmp_path / "two")]]
    assert run_processes(evaluate_in, together, tmp_path / "out") == [0, 0]
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")
    )
    assert two["rows"].keys() == one["rows"].keys()
    for name, expected in one["rows"].items():
        boundary = expected.pop("boundary_f1"), expected.pop("mean_boundary_f1")
        measured = two["rows"][name]
        for key in ("nll", "calibration_error"):  # sums of floats, in another order
            assert measured.pop(key) == pytest.approx(expected.pop(key), rel=1e-12)
        assert measured.pop("boundary_f1") == pytest.approx(boundary[0], rel=1e-12)
        assert measured.pop("mean_boundary_f1") == pytest.approx(boundary[1], rel=1e-12)
        assert measured == expected
    tables = [(tmp_path / name / "per_image.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["data"]["images"] == 3
    assert (tmp_path / "out" / "1.txt").read_text() == ""


def exchange(rank: int) -> int:
    """Every method of `World`, and `GradientSum` with some gradients missing."""
    with join("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (rank, 2, rank == 0)
        assert world.sum(torch.tensor([rank, 10])).tolist() == [1, 20]
        assert world.any(rank == 1, False, True) == [True, False, True]
        assert world.from_main({"rank": rank}) == {"rank": 0}
        assert world.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        assert list(world.share(5)) == [[0, 2, 4], [1, 3]][rank]
        assert world.split([1, 2, 3, 4, 5]) == [[1, 2, 3], [4, 5]][rank]
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (5,))]
        parameters[0].grad = torch.full((3, 2), rank + 1.0).t()
        parameters[2].grad = torch.arange(5.0) * (rank + 1)
        gradients = GradientSum(world)
        gradients.start(parameters[:2])
        gradients.finish(parameters)
        assert parameters[0].grad.tolist() == [[3.0] * 3] * 2
        assert parameters[1].grad is None
        assert parameters[2].grad.tolist() == [0, 3, 6, 9, 12]
    return 0


def test_what_processes_exchange(tmp_path):
    codes = run_processes(exchange, [], tmp_path)
    assert codes == [0, 0], [path.read_text() for path in tmp_path.iterdir()]


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as world:
        assert world == World(0, 1)
    assert list(world.share(3)) == list(world.split(range(3))) == [0, 1, 2]
    assert world.any(True, False) == [True, False]
    assert world.gather("value") == ["value"]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_every_item_is_exactly_one_process_s(size, count):
    worlds = [World(rank, size) for rank in range(size)]
    parts = [world.split(list(range(count))) for world in worlds]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(i for world in worlds for i in world.share(count)) == list(range(count))


def torchrun(errors: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The training command in two processes of the real launcher, which write to `errors`.

    To a file, as a loader whose process was killed may live on and would keep a pipe open.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "deepcrf_ext.train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with errors.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)


def process_of(launcher: subprocess.Popen[bytes], rank: int) -> int:
    """The process that a launcher started as this rank."""
    for child in (
        Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        .read_text(encoding="utf-8")
        .split()
    ):
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text(encoding="utf-8").split("\0"):
            return int(child)
    raise AssertionError(f"{launcher.pid} has no process of rank {rank}")


@pytest.mark.slow
def test_torchrun(data, tmp_path):
    """The real launcher, a process of it killed, and going on."""
    run, log = tmp_path / "run", tmp_path / "errors.txt"
    more = ["--epochs", "100000", "--data.workers", "1"]
    first = torchrun(log, *options(tmp_path, data, run, *more))
    try:
        end = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len(lines(run, "train")) < STEPS_PER_EPOCH:
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        os.kill(process_of(first, 1), signal.SIGKILL)
        first.wait(timeout=60)
    finally:
        first.kill()
    assert first.returncode != 0
    errors = log.read_text()
    # The launcher asks the rest of the group to stop: that, or the loss, is noticed first.
    assert (
        f"all can go on with --resume {run}" in errors
        or f"deepcrf_ext.train --resume {run}" in errors
    )
    assert "[rank0]: Traceback" not in errors
    step = load_checkpoint(run / "last.pt")["step"]
    epochs = str(step // STEPS_PER_EPOCH + 1)
    second = torchrun(log, "--resume", str(run), "--epochs", epochs)
    assert second.wait(timeout=180) == 0, log.read_text()
    assert lines(run, "train")[-1]["step"] == step + STEPS_PER_EPOCH


PROGRAM = """
from pathlib import Path

import torch
from deepcrf_ext.parallel.world import join

with join("cpu") as world:
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = world.sum(torch.ones(3))
    torch.optim.SGD([weight], lr=1.0).step()  # its first step imports much of torch
assert weight.tolist() == [-2.0] * 3
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that frees a tensor while the interpreter ends would abort the process."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_batches_do_not_depend_on_loader_processes(data):
    config = TrainConfig(
        DataConfig("camvid", data, crop=(32, 40), workers=0), batch_size=3, device="cpu"
    )
    dataset = open_dataset("camvid", data, "train")
    expected = list(epoch_batches(dataset, config, epoch=4))
    assert len(expected) == STEPS_PER_EPOCH
    for workers in (1, 2):
        parallel = replace(config, data=replace(config.data, workers=workers))
        parts = [
            list(epoch_batches(dataset, parallel, 4, world=World(rank, 2))) for rank in range(2)
        ]
        for whole, first, second in zip(expected, *parts, strict=True):
            for a, b, c in zip(whole, first, second, strict=True):
                assert torch.equal(a, torch.cat([b, c]))
