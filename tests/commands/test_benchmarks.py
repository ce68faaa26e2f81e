"""The benchmarks run, and their plain PyTorch contenders compute what the operators compute."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepcrf_ext as dc
from deepcrf_ext.ops import _backend

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASE = "5x6 K=3 D=8 float32"


def only_file(folder: Path, pattern: str) -> Path:
    """The record of a name, whatever the processor of this machine."""
    (path,) = folder.glob(pattern)
    return path


def test_contenders_agree_with_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    import contenders
    from cases import Case, make_problem

    monkeypatch.setattr(contenders, "CHUNK", 37)
    potential, unary, labels = make_problem(Case.parse(CASE), torch.device("cpu"), True)
    with torch.no_grad():
        expected = dc.mean_field(unary, [potential], 2)
        for mean_field in (contenders.mean_field_eager, contenders.mean_field_chunked):
            torch.testing.assert_close(mean_field(unary, potential, 2), expected)
    inputs = [unary.requires_grad_(), potential.source, potential.target]
    inputs += [potential.weight, potential.bias]
    cotangent = torch.randn_like(unary)
    expected_gradients = torch.autograd.grad(
        dc.mean_field(unary, [potential], 2), inputs, cotangent
    )
    for mean_field in (contenders.mean_field_eager, contenders.mean_field_chunked):
        gradients = torch.autograd.grad(mean_field(unary, potential, 2), inputs, cotangent)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-4)
    parameters = (potential.source, potential.target, potential.weight, potential.bias)
    expected_loss = dc.pairwise_nll(potential, labels)
    expected_gradients = torch.autograd.grad(expected_loss, parameters)
    for loss_of in (contenders.loss_eager, contenders.loss_chunked):
        loss = loss_of(potential, labels)
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(torch.autograd.grad(loss, parameters), expected_gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edges", "meanfield", "pairwise_loss"])
def test_benchmark_writes_its_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import harness
    import peak

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for constant, value in (("COPIED", 1000), ("SIDES", {"cpu": 256}), ("SECONDS", 0.0)):
        monkeypatch.setattr(peak, constant, value)
    monkeypatch.setattr(peak, "ROUNDS", 1 << 16)
    benchmark = __import__(f"bench_{name}")
    benchmark.main(cases=[CASE], contenders=["deepcrf_ext", "eager"], seconds=0.0)
    record = json.loads(only_file(tmp_path, f"{name}-*.json").read_text())
    assert [(m["case"], m["contender"]) for m in record["measurements"]] == [
        (CASE, "deepcrf_ext"),
        (CASE, "eager"),
    ]
    assert all(m["median"] > 0 and m["repeats"] >= 3 for m in record["measurements"])
    assert record["machine"]["commit"]
    assert record["ceilings"]["copy_bytes_per_second"] > 0
    assert CASE in capsys.readouterr().out


@pytest.mark.parametrize("work", ["mean_field", "mean_field+gradient", "loss"])
def test_contenders_of_tables_agree(work: str) -> None:
    import bench_tables

    case = bench_tables.TableCase.parse(f"{work} 5x6 K=3")
    ours, eager = (
        bench_tables.make_call(case, name, torch.device("cpu")) for name in ("deepcrf_ext", "eager")
    )
    torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-6)


def test_record_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_tables
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_tables, "ceilings", lambda device: {})
    bench_tables.main(cases=["loss 4x5 K=3"], contenders=["deepcrf_ext"], seconds=0.0)
    record = json.loads(only_file(tmp_path, "tables-*.json").read_text())
    assert [m["case"] for m in record["measurements"]] == ["loss 4x5 K=3"]
    edges = bench_tables.Case(4, 5, 3).num_edges()
    assert record["table_bytes"] == {"loss 4x5 K=3": 4 * 9 * edges}


def test_contenders_of_weak_losses_agree() -> None:
    import bench_weak_losses

    case = bench_weak_losses.LossCase.parse("gated 11x9 K=3 r=2")
    calls = [
        bench_weak_losses.make_call(name, case, torch.device("cpu"))
        for name in ("deepcrf_ext", "shifts", "unfold")
    ]
    for call in calls[1:]:
        torch.testing.assert_close(call(), calls[0](), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_record_of_weak_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_weak_losses
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    cases = ["gated 40x30 K=3 r=2", "dense 40x30 K=3"]
    bench_weak_losses.main(cases=cases, seconds=0.0)
    record = json.loads(only_file(tmp_path, "weak_losses-*.json").read_text())
    assert [m["contender"] for m in record["measurements"] if m["median"] is not None] == [
        "deepcrf_ext",
        "shifts",
        "unfold",
        "deepcrf_ext",
        "deepcrf_ext, lattices reused",
    ]


def test_record_of_fresh_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_cold_start
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    bench_cold_start.main(repeats=1)
    record = json.loads(only_file(tmp_path, "cold_start-*.json").read_text())
    ours, torch_alone, *others = record["measurements"]
    assert [m["contender"] for m in (ours, torch_alone)] == ["deepcrf_ext", "torch alone"]
    assert ours["peak_bytes"] > torch_alone["peak_bytes"] > 10e6
    assert all(m["contender"] == "pydensecrf2" and m["peak_bytes"] > 10e6 for m in others)
    with pytest.raises(RuntimeError, match="ended with 3"):
        bench_cold_start.run_script("raise SystemExit(3)")


@pytest.mark.slow
def test_record_of_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_meanfield
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_meanfield, "ceilings", lambda *_: {})
    bench_meanfield.main(cases=[CASE], contenders=["chunked"], seconds=0.0, gradient=True)
    record = json.loads(only_file(tmp_path, "meanfield_gradient-*.json").read_text())
    assert record["measurements"][0]["median"] > 0
    forward = bench_meanfield.operations(bench_meanfield.Case.parse(CASE), gradient=False)
    assert record["operations"][CASE] == 3 * forward
    assert not list(tmp_path.glob("meanfield-*"))


@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    script = tmp_path / "worker.py"
    script.write_text("import torch\ntorch.empty(1 << 50)\n")
    (dead,) = harness.sweep(str(script), "cpu", ["any"], ["eager"], 0.0)
    assert dead == harness.Measurement("any", "eager", left_out="does not fit")
    script.write_text("import sys\nsys.exit('a mistake')\n")
    with pytest.raises(RuntimeError, match="a mistake"):
        harness.sweep(str(script), "cpu", ["any"], ["eager"], 0.0)
    (large,) = harness.sweep(str(script), "cpu", ["any"], ["eager"], 0.0, lambda *_: 1e18)
    assert large.left_out == "does not fit"


@pytest.mark.slow
def test_another_instruction_set_has_its_own_record(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, torch, harness\n"
        "harness.RESULTS = pathlib.Path(sys.argv[1])\n"
        "harness.write_results('any', torch.device('cpu'), [])\n"
    )
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=BENCHMARKS,
        env={**environment, "DEEPCRF_CPU_ISA": "portable"},
        check=True,
    )
    (path,) = tmp_path.iterdir()
    makers = ("amd", "intel", platform.machine())
    assert path.name in {f"any-{maker}-portable.json" for maker in makers}
    machine = json.loads(path.read_text())["machine"]
    assert machine["cpu_isa"] == "portable"
    assert machine["limits"] == {
        "ATEN_CPU_CAPABILITY": "default",
        "DEEPCRF_CPU_ISA": "portable",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    }


def test_long_calls_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness

    calls: list[None] = []
    monkeypatch.setattr(harness, "LONG", -1.0)
    result = harness.measure(lambda: calls.append(None), torch.device("cpu"), 10.0)
    assert len(calls) == 2
    assert result["repeats"] == 1


def test_multiply_adds_are_faster_than_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import peak
    from threads import torch_threads

    monkeypatch.setattr(peak, "ROUNDS", 1 << 18)
    with torch_threads(1):
        rate = peak.multiply_add_rate(torch.float32)
    assert rate is not None
    assert 1e9 < rate < 1e12  # of one core
    assert peak.multiply_add_rate(torch.float16) is None


def test_goals_beside_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import goals
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    case = "56x75 K=21 D=512 float32"
    harness.write_results(
        "meanfield",
        torch.device("cpu"),
        [
            harness.Measurement(case, "deepcrf_ext", 0.5, 0.5, 10_000_000, 3),
            harness.Measurement(case, "eager", 25.0, 25.0, 5_000_000_000, 1),
        ],
        ceilings={"float32_multiply_add_operations_per_second": 200e9},
        operations={case: 80e9},
    )
    goals.main()
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("mean field, 56x75, K=21, float32")]
    goal = "60%" if _backend.native().cpu_isa() == "avx2" else "80%"
    assert line.split()[-5:] == ["ms", "50.0x", "1/500", goal, "80%"]
    (line,) = [line for line in lines if line.startswith("dense CRF, 480x360")]
    assert line.split()[-5:] == ["-", "-", "8x", "-", "-"]
    assert "200 GFLOP/s in float32" in lines[-1]


@pytest.mark.slow
def test_agreement_of_the_dense_crf_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydensecrf")
    import agree_densecrf
    import cv2
    import harness
    import numpy as np

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(agree_densecrf, "SMALL_WIDTH", 24)
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    agree_densecrf.main(tmp_path, labels=[2, 5], iterations=[1, 3])
    record = json.loads(only_file(tmp_path, "densecrf-agreement-*.json").read_text())
    facts = record["agreement"]
    assert [(fact["preset"], fact["labels"]) for fact in facts] == [
        ("deeplab", 2),
        ("deeplab", 5),
        ("pydensecrf", 2),
        ("pydensecrf", 5),
    ]
    for fact in facts:
        assert fact["same_label"] >= 0.999
        assert 0 < fact["largest_difference"] < 1e-3
        ours, theirs = fact["exact"]["deepcrf_ext"], fact["exact"]["pydensecrf2"]
        assert ours["mean_error"] == pytest.approx(theirs["mean_error"], rel=0.05)
    assert "deeplab" in capsys.readouterr().out


@pytest.mark.slow
def test_scaling_writes_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_scaling
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_scaling, "SIDES", (3, 5))
    bench_scaling.main(seconds=0.0, axes=["edges"])
    points = json.loads(only_file(tmp_path, "scaling-*.json").read_text())["points"]
    assert [p["value"] for p in points if p["operator"] == "loss"] == [72, 336]
    assert all(p["nanoseconds_per_unit"] > 0 for p in points)
    assert only_file(tmp_path, "scaling-*.png").stat().st_size > 0


def test_record_of_the_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import scenes

    monkeypatch.chdir(tmp_path)
    for seed, mean_iou in ((3, 0.5), (4, 0.75)):
        row = {**dict.fromkeys(scenes.SCORES, mean_iou), "iou": {"sky": mean_iou}}
        report = {"command": "c", "commit": "d", "data": {"images": 64}, "rows": {"full": row}}
        fitted = {"command": "c", "commit": "d", "weights": {}, "nll": {}, "config": {}}
        for folder in ("", "calibrate-scenes-val/"):
            for split in ("val", "test"):
                file = Path(f"runs/scenes-{seed}/{folder}evaluate-scenes-{split}/evaluation.json")
                file.parent.mkdir(parents=True)
                file.write_text(json.dumps(report), encoding="utf-8")
        run = Path(f"runs/scenes-{seed}")
        (run / "grid.png").touch()
        (run / "calibrate-scenes-val/calibration.json").write_text(json.dumps(fitted))
    monkeypatch.setattr(scenes, "run", lambda command, file: file.stat())  # none is run
    scenes.main(["--seeds", "[3, 4]", "--output", "record.json"])
    assert "full              62.500 (50.000 to 75.000)" in capsys.readouterr().out
    record = json.loads(Path("record.json").read_text(encoding="utf-8"))
    assert record["seeds"]["4"]["calibrated"]["test"]["rows"]["full"]["iou"] == {"sky": 0.75}
    assert record["seeds"]["3"]["train"].endswith("--seed 3 --output runs/scenes-3")
