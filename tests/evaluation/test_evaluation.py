"""The loop that training and the commands measure by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import write_run

from deepcrf_ext.data import Sample, SegmentationDataset, open_dataset
from deepcrf_ext.evaluation.calibration import fit_relation_weights
from deepcrf_ext.evaluation.evaluation import EvaluationStopped, before_and_after, evaluate
from deepcrf_ext.evaluation.prediction import label_large
from deepcrf_ext.evaluation.probabilities import Probabilities
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.models.variants import Variant
from deepcrf_ext.records.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepCRF, SegmentationDataset]:
    folder: Path = tmp_path_factory.mktemp("run")
    model, _, _ = load_model(write_run(folder / "run", folder / "camvid"))
    return model, open_dataset("camvid", folder / "camvid", "val")


def test_summary_and_likelihood(trained: tuple[DeepCRF, SegmentationDataset]) -> None:
    model, dataset = trained
    variants = before_and_after(model)
    result = evaluate(model, dataset, variants, amp=False, boundaries=False)
    assert result.boundaries == {}
    summary = result.summary()
    assert list(summary) == list(variants) == ["unary-3scales", "1unary+2pair"]
    for name, scores in summary.items():
        assert scores["mean_iou"] == result.scores[name].mean_iou
        total, pixels, calibration = 0.0, 0, Probabilities()
        for sample in dataset:
            image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float()
            with torch.no_grad():
                marginals = model.predict(image, name)[0]
            labels = torch.from_numpy(sample.labels).long()
            known = labels != 255
            chosen = marginals.gather(0, labels.where(known, 0)[None])[0][known]
            smallest = torch.finfo(torch.float32).tiny
            total -= float(chosen.clamp(min=smallest).double().log().sum())
            pixels += int(known.sum())
            best = marginals.max(0)
            calibration.update(best.indices, best.values, best.values, labels)
        error = calibration.compute().calibration_error
        assert scores["calibration_error"] == pytest.approx(error, abs=1e-4)
        assert scores["nll"] == pytest.approx(total / pixels, rel=1e-4)


def test_stops_when_asked(
    trained: tuple[DeepCRF, SegmentationDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = trained
    seen: list[int] = []
    read = type(dataset).__getitem__

    def noted(self: SegmentationDataset, index: int) -> Sample:
        seen.append(index)
        return read(self, index)

    monkeypatch.setattr(type(dataset), "__getitem__", noted)
    variants = {"u": before_and_after(model)["unary-3scales"]}
    with pytest.raises(EvaluationStopped):
        evaluate(model, dataset, variants, amp=False, stop=lambda: len(seen) == 2)
    assert seen == [0, 1]


def test_a_variant_without_a_name_is_called_by_its_potentials(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "data", potentials=("unary_1scale", "surrounding"))
    model, _, _ = load_model(run)
    assert list(before_and_after(model)) == ["unary-1scale", "unary_1scale+surrounding"]
    alone = DeepCRF(replace(model.config, potentials=("surrounding",)), 3)
    assert before_and_after(alone) == {"pairwise-1": Variant(None, ("surrounding",))}
    assert model.name_of(model.default_variant()) == "unary_1scale+surrounding"


@pytest.mark.parametrize("boundaries", [False, True])
def test_the_default_device_is_not_that_of_the_work(
    trained: tuple[DeepCRF, SegmentationDataset], boundaries: bool
) -> None:
    model, dataset = trained
    variants = {"full": Variant("unary", ("surrounding", "above_below"), dense_crf=True)}
    wanted = evaluate(model, dataset, variants, amp=False, boundaries=boundaries)
    with torch.device("meta"):
        found = evaluate(model, dataset, variants, amp=False, boundaries=boundaries)
    assert found.summary() == wanted.summary()


def test_weights_are_fitted_on_any_default_device(tmp_path: Path) -> None:
    model, _, _ = load_model(write_run(tmp_path / "run", tmp_path / "camvid"))
    with torch.device("meta"):
        fitted = fit_relation_weights(model, open_dataset("camvid", tmp_path / "camvid", "val"))
    assert fitted.after <= fitted.before


@pytest.mark.parametrize("dense_crf", [None, DenseCRFSettings(iterations=1)])
def test_parts_of_large_images_on_any_default_device(dense_crf: DenseCRFSettings | None) -> None:
    image, memory = torch.randint(256, (3, 140, 150), dtype=torch.uint8), 10**5
    marginals = torch.rand(3, 20, 25).softmax(0)
    wanted = label_large(marginals, image, dense_crf, memory)
    with torch.device("meta"):
        assert torch.equal(label_large(marginals, image, dense_crf, memory), wanted)
