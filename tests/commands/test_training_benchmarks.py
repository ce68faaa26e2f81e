"""The benchmark of whole training steps and predictions, and the simulation of many processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def test_plain_model_computes_what_the_package_computes() -> None:
    from eager_model import EagerCRF

    from deepcrf_ext.config import ModelConfig
    from deepcrf_ext.models import DeepCRF
    from deepcrf_ext.predict import predict_image

    torch.manual_seed(0)
    narrow = {"widths": (4, 6), "convs": (1, 1), "pooled_blocks": 2, "head_widths": (8,)}
    model = DeepCRF(ModelConfig(**narrow, hidden=8, pairwise_hidden=8), 5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # spreads the energies, so that a prediction holds several labels
    images = torch.rand(2, 3, 30, 26) * 255
    labels = torch.randint(5, (2, 30, 26))
    labels[0, :9] = 255
    photo = torch.randint(256, (30, 26, 3), dtype=torch.uint8)
    expected_loss = sum(model.losses(images, labels).values())
    expected_labels = predict_image(model, photo.numpy(), model.default_variant(), amp=False).labels
    assert len(set(expected_labels.ravel().tolist())) > 1
    eager = EagerCRF(model)
    torch.testing.assert_close(eager.loss(images, labels), expected_loss)
    predicted = eager.predict(photo.permute(2, 0, 1).float())
    assert (predicted.numpy() == expected_labels).mean() > 0.99  # ties of rounding


@pytest.mark.slow
def test_end_to_end_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_end_to_end
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    cases = ["small load B=2", "paper load B=2"]
    bench_end_to_end.main(cases=cases, seconds=0.0, repeats=1)
    (file,) = tmp_path.glob("end_to_end-*.json")
    record = json.loads(file.read_text())
    assert [m["contender"] for m in record["measurements"]] == ["deepcrf_ext", "deepcrf_ext"]
    assert all(m["median"] > 0 for m in record["measurements"])


def test_passes_of_the_blocks() -> None:
    import bench_end_to_end

    job = bench_end_to_end.Job.parse("small blocks B=1")
    for contender in bench_end_to_end.CONTENDERS:
        bench_end_to_end.make_call(job, contender, "cpu", Path())()


@pytest.mark.parametrize("processes", [1, 2, 64])
@pytest.mark.parametrize("load_seconds", [0.01, 1.0])
def test_simulation_without_chance_is_the_arithmetic(processes: int, load_seconds: float) -> None:
    from simulate_scaling import Cluster, Potential, arithmetic, simulate

    potentials = [Potential("a", 2e12, 1e9, 0), Potential("b", 1e12, 3e9, 4)]
    cluster = Cluster(
        "", processes, rate=1e14, bandwidth=1e11, jitter=0, load_seconds=load_seconds, loaders=4
    )
    by_hand, simulated = (f(potentials, cluster, 8) for f in (arithmetic, simulate))
    assert simulated.total == pytest.approx(by_hand.total, rel=0.01)
    assert simulated.exposed == pytest.approx(by_hand.exposed)
    if load_seconds == 1:
        assert by_hand.total == pytest.approx(2)  # 8 images of a second by 4 loaders
    elif processes == 2:  # b's gradients follow a's and b's exchanges; 20 GB for the optimiser
        compute, exchanges = 0.16 + 0.08, 4 * 2 * 15e-6
        assert by_hand.total == pytest.approx(compute + exchanges + 0.03 + 0.01, abs=1e-4)


def test_every_potential_of_a_model_is_counted() -> None:
    from simulate_scaling import count_potentials

    from deepcrf_ext.config import preset

    config = preset("small")
    config.model.potentials = "all"
    potentials = {potential.name: potential for potential in count_potentials(config, 3)}
    assert list(potentials) == ["unary", "unary_1scale", "surrounding", "above_below"]
    assert 0 < potentials["unary_1scale"].operations < potentials["unary"].operations
    assert potentials["unary"].operations < potentials["surrounding"].operations
