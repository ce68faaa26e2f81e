"""Where the gain of a trained model's pairwise terms comes from, on splits with labels.

    python benchmarks/crf_gain.py measure RUN record.json [--before '[RUN]'] [--root CAMVID] \\
        [--splits '[val, test]'] [--dense_crf dense_crf.json]
    python benchmarks/crf_gain.py draw record.json gain.png [--split test]

Rows of one model, so on the same unary: the unary, each relation without and with it, all of them,
and the dense CRF behind the unary and behind the whole. Then the same networks with one thing
changed: the class balance of the losses taken back out of the unary, the weights of the relations
fitted to the validation images (`deepcrf_ext.calibrate`), and all of them 1, the plain sum of the
paper. With --before, the unary that the model started from; with --scales or --flip, the rows on
several views of each image.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from deepcrf_ext.config import TrainConfig
from deepcrf_ext.data import SegmentationDataset, open_dataset
from deepcrf_ext.evaluation.calibration import fit_relation_weights
from deepcrf_ext.evaluation.evaluation import evaluate
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.models.refine import DenseCRFSettings
from deepcrf_ext.paper.reproduction import gains
from deepcrf_ext.records.checkpoint import find_trained, load_checkpoint, load_model
from deepcrf_ext.records.environment import environment
from deepcrf_ext.records.provenance import package_commit, process_command
from deepcrf_ext.records.run_folder import read_metrics
from deepcrf_ext.whole_files import write_json

UNARY = Variant("unary")
REFINED = Variant("unary", dense_crf=True)


def without_balance(model: DeepCRF, class_weights: Sequence[float]) -> DeepCRF:
    """A copy whose unary says what it would have, had no class counted more than another.

    Trained with weights w, a softmax tends to w p / sum w p in the place of p.
    """
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.potentials["unary"].output.bias += torch.tensor(class_weights).log()
    return changed


def with_weights(model: DeepCRF, weights: Mapping[str, float]) -> DeepCRF:
    """A copy with these weights of its relations."""
    changed = copy.deepcopy(model)
    changed.set_relation_weights(weights)
    return changed


def paper_rows(model: DeepCRF) -> dict[str, Variant]:
    """The rows of the paper's table that a model of one scale has, in its order."""
    crf = model.default_variant()
    alone = {
        f"pairwise-{index + 1}": Variant(None, (name,)) for index, name in enumerate(crf.relations)
    }
    name = f"1unary+{len(crf.relations)}pair"
    return {"unary": UNARY, **alone, name: crf, "full": replace(crf, dense_crf=True)}


class Study:
    """Rows of models, measured and written split by split.

    Args:
        checkpoint: the trained model, with a unary and relations.
        root: of its data; None takes that of its training.
        dense_crf: what the dense CRF of rows with one is set to.
    """

    def __init__(self, checkpoint: Path, root: Path | None, dense_crf: DenseCRFSettings) -> None:
        self.model, config, _ = load_model(checkpoint, torch.device("cpu"))
        data = config.data if root is None else replace(config.data, root=root)
        self.config: TrainConfig = replace(config, data=data)
        self.dense_crf = dense_crf
        self.class_weights = load_checkpoint(find_trained(checkpoint)).get("class_weights")

    def split(self, name: str) -> SegmentationDataset:
        """A split of the data."""
        return open_dataset(self.config.data, split=name, seed=self.config.seed)

    def rows(
        self,
        dataset: SegmentationDataset,
        model: DeepCRF,
        variants: Mapping[str, Variant],
        views: Views = ONE_VIEW,
    ) -> dict[str, dict[str, Any]]:
        """The record of each variant of a model."""
        result = evaluate(model, dataset, variants, self.config.amp, self.dense_crf, views=views)
        return {
            name: {
                "potentials": asdict(variant),
                "scores": {
                    **result.scores[name].as_dict(dataset.classes),
                    **result.boundaries[name].as_dict(dataset.classes),
                    **result.probabilities[name].as_dict(),
                },
                "seconds_per_image": {
                    "networks": result.network_seconds,
                    "inference": result.variant_seconds[name],
                },
            }
            for name, variant in variants.items()
        }

    def measure(
        self,
        split: str,
        calibrated: Mapping[str, float] | None,
        before: DeepCRF | None,
        views: Views,
    ) -> dict[str, Any]:
        """All rows of a split, each with what it gains over the unary, in points a class.

        Without calibrated weights, those of the model as it is.
        """
        dataset, model = self.split(split), self.model
        rows = paper_rows(model)
        crf = model.default_variant()
        joined = {f"unary + {name}": Variant("unary", (name,)) for name in crf.relations}
        records = self.rows(dataset, model, {**rows, **joined, "unary + dense CRF": REFINED})
        whole = list(rows)[-2]
        groups: list[tuple[str, DeepCRF, dict[str, Variant], Views]] = []
        if calibrated is not None:
            ones = dict.fromkeys(crf.relations, 1.0)
            for group, weights in (("weights fitted to val", calibrated), ("weights of 1", ones)):
                groups.append((group, with_weights(model, weights), {whole: crf}, ONE_VIEW))
            if self.class_weights is not None:
                plain = without_balance(model, self.class_weights)
                variants = {"unary": UNARY, "unary + dense CRF": REFINED, whole: crf}
                groups.append(("balance undone", plain, variants, ONE_VIEW))
        if before is not None:
            groups.append(("before the relations", before, {"unary": UNARY}, ONE_VIEW))
        if views != ONE_VIEW:
            several = {name: rows[name] for name in ("unary", whole, "full")}
            groups.append(("several views", model, several, views))
        for group, changed, variants, seen in groups:
            for name, record in self.rows(dataset, changed, variants, seen).items():
                records[f"{name}, {group}"] = record
        for record in records.values():
            record["gains"] = gains(records["unary"]["scores"]["iou"], record["scores"]["iou"])
        return {"images": len(dataset), "rows": records}


def trainings(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Settings and validations of the runs that led to a model, in their order."""
    records = []
    for run in runs:
        state = load_checkpoint(run / "last.pt")
        config = state["config"]
        for holder, key in ((config["data"], "root"), (config, "backbone_weights")):
            holder[key] = holder[key] and Path(holder[key]).name
        records.append(
            {
                "config": config,
                "epochs": state["epoch"],
                "steps": state["step"],
                "validation": [line for line in read_metrics(run) if line["kind"] == "val"],
            }
        )
    return records


def print_rows(split: str, measured: dict[str, Any]) -> None:
    """Mean IoU, pixel accuracy, boundary F1 (percent) and NLL of each row."""
    print(f"{split}: {measured['images']} images\n{'':44}  mIoU  pixels  boundary  NLL")
    for name, record in measured["rows"].items():
        scores = record["scores"]
        percent = [scores[key] for key in ("mean_iou", "pixel_accuracy", "mean_boundary_f1")]
        cells = "".join(f"{100 * value:8.1f}" for value in percent)
        print(f"{name:42}{cells}{scores['nll']:9.3f}")


def measure(
    checkpoint: Path,
    output: Path,
    before: tuple[Path, ...] = (),
    root: Path | None = None,
    splits: tuple[str, ...] = ("val",),
    dense_crf: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    fit_images: int = 200,
    commands: tuple[str, ...] = (),
) -> None:
    """Measures the rows of a trained model and writes them as JSON.

    Args:
        checkpoint: run folder of the model.
        output: file to write.
        before: run folders of the trainings before it, in their order; the last is of the unary
            that it started from.
        root: folder of the data; null takes that of the training.
        splits: to measure, in this order.
        dense_crf: file of deepcrf_ext.tune_dense_crf; null is the preset pydensecrf.
        scales: of the rows on several views.
        flip: the same, mirrored too.
        fit_images: validation images, at most, that weights are fitted to; 0 leaves the rows with
            one thing changed out.
        commands: what made the checkpoint, for the record.
    """
    settings = DenseCRFSettings() if dense_crf is None else DenseCRFSettings.read(str(dense_crf))
    study = Study(checkpoint, root, settings)
    unary = load_model(before[-1], torch.device("cpu"))[0] if before else None
    fitted: dict[str, Any] = {}
    if fit_images:
        changed = copy.deepcopy(study.model)
        val_set = study.split(study.config.data.val_split)
        nll = fit_relation_weights(changed, val_set, study.config.amp, fit_images)
        fitted = {"fitted": changed.relation_weights, "val_nll_at_nodes": nll._asdict()}
    views = Views(tuple(scales), flip)
    facts, _ = environment()
    record: dict[str, Any] = {
        "commands": [*commands, process_command()],
        "commit": package_commit(),
        "environment": {
            name: facts[name] for name in ("torch", "CPU", "threads", "compiler") if name in facts
        }
        | {"Python": platform.python_version()},
        "parameters": sum(value.numel() for value in study.model.parameters()),
        "training": trainings([*before, checkpoint]),
        "dense_crf": settings.as_dict(),
        "views": vars(views),
        "class_weights": study.class_weights,
        "relation_weights": {"trained": study.model.relation_weights, **fitted},
        "splits": {},
    }
    for split in splits:
        record["splits"][split] = study.measure(split, fitted.get("fitted"), unary, views)
        write_json(output, record)
        print_rows(split, record["splits"][split])


def draw(record: Path, picture: Path, split: str = "test") -> None:
    """Draws the IoU of each class that the relations, and then the dense CRF, add to the unary.

    Args:
        record: what `measure` wrote.
        picture: file to write.
        split: to show.
    """
    rows = json.loads(record.read_text(encoding="utf-8"))["splits"][split]["rows"]
    whole = next(name for name in rows if name.startswith("1unary+"))
    shown = {"relations": whole, "relations and dense CRF": "full"}
    classes = list(rows[whole]["gains"])
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(classes) + 1.0)
    places[-1] += 0.5
    for index, (title, row) in enumerate(shown.items()):
        points = [rows[row]["gains"][name] or 0.0 for name in classes]
        heights = np.round([*points, np.mean(points)], 1) + 0.0  # no -0.0
        bars = axes.bar(places + 0.4 * (index - 0.5), heights, 0.4, label=title)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    unary = [rows["unary"]["scores"]["iou"][name] or 0.0 for name in classes]
    below = [f"{100 * value:.0f}" for value in [*unary, np.mean(unary)]]
    names = [f"{name}\n({value})" for name, value in zip([*classes, "mean"], below, strict=True)]
    axes.set_xticks(places, names, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("class (IoU of the unary, %)", fontsize=8)
    axes.set_ylabel(f"IoU over the unary's, points ({split})", fontsize=8)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli([measure, draw])
