"""The one command for a machine with a GPU, tried without one."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_gpu.py"
ABSENT = ("jsonargparse", "safetensors")  # on such a machine


def run(*options: str, missing: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Without -S the package would be found where it is installed, which it is not there."""
    paths = [*([str(missing)] if missing else []), sysconfig.get_path("purelib")]
    return subprocess.run(
        [sys.executable, "-S", str(SCRIPT), "--dry-run", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def outcomes(folder: Path) -> dict[str, str]:
    return {
        part["part"]: part["result"] for part in json.loads((folder / "on_gpu.json").read_text())
    }


@pytest.mark.slow
def test_dry_run_runs_every_part(tmp_path: Path) -> None:
    missing, output = tmp_path / "missing", tmp_path / "output"
    missing.mkdir()
    for name in ABSENT:
        (missing / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    done = run("--output", str(output), "--budget", "3600", missing=missing)
    assert done.returncode == 0, done.stdout + done.stderr
    results = outcomes(output)
    assert len(results) == 17
    assert set(results.values()) == {"ok"}
    records = ("pairwise_loss", "meanfield", "densecrf", "edges", "end_to_end")
    for name in records:
        (path,) = output.glob(f"{name}-*.json")
        record = json.loads(path.read_text())
        assert record["machine"]["commit"]
        assert record["ceilings"]["copy_bytes_per_second"] > 0
        assert record["ceilings"]["bfloat16_matmul_operations_per_second"] > 0
        assert {m["contender"] for m in record["measurements"]} >= {"deepcrf_ext", "eager"}
        assert all(m["median"] > 0 for m in record["measurements"])
        assert f"{path.stem}\n" in done.stdout
    log = (output / "on_gpu.log").read_text()
    assert f"PyTorch version: {torch.__version__}" in log
    assert log.count("==== ") == len(results)
    assert log.count(" passed") == 7
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[-17:]] == list(results)


def test_without_time_every_part_is_left_out(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path), "--budget", "0", "--only", "ceilings", "edges")
    assert done.returncode == 0
    assert outcomes(tmp_path) == dict.fromkeys(["ceilings", "edges"], "left out: no time left")
    assert not list(tmp_path.glob("edges-*"))


def test_a_failed_build_ends_it(tmp_path: Path) -> None:
    (tmp_path / "setuptools.py").write_text("raise SystemExit('a broken setuptools')\n")
    done = run("--output", str(tmp_path / "output"), missing=tmp_path)
    assert done.returncode == 1
    assert outcomes(tmp_path / "output") == {"build": "failed"}
    assert "a broken setuptools" in done.stdout


def test_part_that_is_not_there(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path), "--only", "bulid")
    assert done.returncode == 2
    assert "--only: got ['bulid'], must be of ['build', " in done.stderr


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--output", str(tmp_path / "file" / "folder"), "--only", "edges")
    assert done.returncode == 2
    assert "must be a folder to write to (Not a directory)" in done.stderr


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "architecture"),
    [
        ("echo 9.0", "90-real"),
        ("echo 12.1; echo 9.0", "121-real"),
        ("echo '[N/A]'", ""),
        ("echo NVIDIA-SMI has failed; exit 9", ""),
        ("exec sleep 60", ""),
    ],
)
def test_a_driver_that_does_not_say_what_the_card_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, architecture: str
) -> None:
    import on_gpu
    import timed_parts

    program(tmp_path / "nvidia-smi", body)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(timed_parts, "ANSWER", 2.0)
    timed_parts.answer.cache_clear()
    assert on_gpu.architecture() == architecture
    timed_parts.answer.cache_clear()


def test_tools_that_may_not_look_at_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their parts fail and say why, those behind them run."""
    import on_gpu
    import timed_parts

    program(tmp_path / "ncu", "echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1")
    program(tmp_path / "compute-sanitizer", "echo '========= Error: Device not supported'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    timed_parts.answer.cache_clear()
    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    parts = [
        on_gpu.sanitizer("memcheck", False),
        on_gpu.profile("meanfield", "any", 0, 1, []),
        timed_parts.Part("behind", 30.0, ["true"]),
    ]
    results = {
        part.name: next(timed_parts.run([part], 100.0, tmp_path, False)).result for part in parts
    }
    assert results == {"memcheck": "failed", "profile meanfield": "failed", "behind": "ok"}
    printed = capsys.readouterr().out
    assert "ERR_NVGPUCTRPERM" in printed
    assert "Device not supported" in printed


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_part_leaves_behind_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timed_parts

    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    part = timed_parts.Part("parent", 30.0, ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child"])
    (outcome,) = timed_parts.run([part], 100.0, tmp_path, False)
    assert outcome.result == "ok"
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_part_that_nothing_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process is that waits in a driver; those behind it have the rest of the time."""
    import timed_parts

    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    monkeypatch.setattr(timed_parts, "GRACE", 0.5)
    monkeypatch.setattr(timed_parts.Running, "stop", lambda *_: None)
    part = timed_parts.Part("deaf", 0.5, ["sh", "-c", "echo begun; exec sleep 20"])
    (outcome,) = timed_parts.run([part], 100.0, tmp_path, False)
    assert outcome.result == "out of time"
    assert outcome.seconds < 15
    assert "begun" in (tmp_path / "on_gpu.log").read_text()


def test_a_log_that_would_be_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timed_parts

    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    code = "print('first'); print('x' * 3_000_000); print('last')"
    part = timed_parts.Part("talker", 30.0, [sys.executable, "-c", code])
    assert [one.result for one in timed_parts.run([part], 100.0, tmp_path, False)] == ["ok"]
    log = (tmp_path / "on_gpu.log").read_text()
    assert len(log) < 1_000_000
    assert "\nfirst\n" in log
    assert "characters left out" in log
    assert log.endswith("last\n")


def test_calls_that_fail_do_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_times
    import harness

    def make_call(case: str, contender: str, device: torch.device) -> gpu_times.Call:
        if case == "broken":
            raise RuntimeError("no such kernel")
        return lambda: None

    cases = ("broken", "whole")
    benchmark = gpu_times.Benchmark(make_call, cases, cases, ("deepcrf_ext",))
    monkeypatch.setitem(gpu_times.BENCHMARKS, "any", benchmark)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def reasons(until: float) -> tuple[bool, list[str | None]]:
        """Whether all went well, and why there is no time of each case."""
        good = gpu_times.run("any", torch.device("cpu"), True, until)
        (path,) = tmp_path.glob("any-*.json")
        found = json.loads(path.read_text())["measurements"]
        assert [measurement["case"] for measurement in found] == list(cases)
        return good, [measurement["left_out"] for measurement in found]

    assert reasons(math.inf) == (False, ["RuntimeError: no such kernel", None])
    assert reasons(0.0) == (True, ["no time left"] * 2)


def test_a_record_survives_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    cpu = torch.device("cpu")
    path = harness.write_results("any", cpu, [harness.Measurement("case", "contender")])
    written = path.read_text(encoding="utf-8")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepcrf_ext.whole_files.os.fsync", interrupted)  # once all is written
    with pytest.raises(KeyboardInterrupt):
        harness.write_results("any", cpu, [])
    assert path.read_text(encoding="utf-8") == written


def test_a_process_whose_gpu_is_out_of_use_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[1] / "conftest.py"  # one of several modules of that name
    spec = importlib.util.spec_from_file_location("root_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)

    def synchronize() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    alone = SimpleNamespace(config=SimpleNamespace())
    conftest.pytest_runtest_setup(alone)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(pytest.exit.Exception, match="out of use: an illegal memory access"):
        conftest.pytest_runtest_setup(alone)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(pytest.exit.Exception):
        conftest.pytest_runtest_setup(SimpleNamespace(config=SimpleNamespace(workerinput={})))
    assert codes == [1]


def test_command_past_its_limit_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import timed_parts

    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(print('1 failed, 3 passed in 2s')))\n"
        "print('begun', flush=True); time.sleep(60)\n"
    )
    part = timed_parts.Part("sleeper", 1.0, [sys.executable, "-c", program])
    (outcome,) = timed_parts.run([part], 100.0, tmp_path, False)
    assert (outcome.result, outcome.summary) == ("out of time", "1 failed, 3 passed in 2s")
    assert outcome.seconds < 30
    assert "begun" in capsys.readouterr().out
    absent = timed_parts.Part("absent", 1.0, ["true"], tool=("no-such-tool",))
    (outcome,) = timed_parts.run([absent], 100.0, tmp_path, False)
    assert outcome.result == "left out: no no-such-tool here"
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n", encoding="utf-8")
    (tmp_path / "broken").chmod(0o755)
    broken = timed_parts.Part("broken", 1.0, [str(tmp_path / "broken")])
    (outcome,) = timed_parts.run([broken], 100.0, tmp_path, False)
    assert outcome.result == "failed"
    assert "No such file or directory" in outcome.summary


def test_parts_beside_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can only end while the other runs; a third, which does not, is killed."""
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    import timed_parts

    monkeypatch.setattr(timed_parts, "LEAST", 0.0)
    monkeypatch.setattr(timed_parts, "GRACE", 1.0)
    meet = (
        "import sys, time\nfrom pathlib import Path\n"
        "own, other = (Path(name) for name in sys.argv[1:])\n"
        "own.touch()\nwhile not other.exists(): time.sleep(0.01)\nprint(own.name, 'met')\n"
    )
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    names = [str(tmp_path / name) for name in ("first", "second")]
    group = [
        timed_parts.Part("first", 30.0, [sys.executable, "-c", meet, *names]),
        timed_parts.Part("second", 30.0, [sys.executable, "-c", meet, *names[::-1]], beside=True),
        timed_parts.Part("deaf", 1.0, [sys.executable, "-c", deaf], beside=True),
        timed_parts.Part("behind", 1.0, ["true"]),
    ]
    assert [[part.name for part in parts] for parts in timed_parts.together(group)] == [
        ["first", "second", "deaf"],
        ["behind"],
    ]
    found = {
        outcome.part: outcome for outcome in timed_parts.run(group[:3], 100.0, tmp_path, False)
    }
    results = {name: outcome.result for name, outcome in found.items()}
    assert results == {"first": "ok", "second": "ok", "deaf": "out of time"}
    assert found["deaf"].seconds < 30
    log = (tmp_path / "on_gpu.log").read_text()
    assert "first met" in log.partition("==== first")[2].partition("====")[0]
    assert "second met" in log.partition("==== second")[2].partition("====")[0]


def test_a_file_that_cannot_be_collected_is_not_all(tmp_path: Path) -> None:
    (tmp_path / "test_missing.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "test_there.py").write_text("def test_it(): pass\n")
    code = (
        "import subprocess, sys, on_gpu; command = on_gpu.pytest((), 'it', False); "
        "command[command.index('--hypothesis-profile=few')] = '--noconftest'; "
        "sys.exit(subprocess.run([*command, *sys.argv[1:]]).returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), f"--rootdir={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "1 error" in done.stdout


def test_missing_packages_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-s", "-S", SCRIPT, "--dry-run", "--output", tmp_path],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("has no torch, pybind11, pytest")
    assert not list(tmp_path.iterdir())
