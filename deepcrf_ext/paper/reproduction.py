"""The paper's experiments on one data set, step by step, each done once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from deepcrf_ext.data import SegmentationDataset, open_dataset, refuse_bad_files
from deepcrf_ext.data.reduced import Reduced
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.paper import examples
from deepcrf_ext.paper.budgets import Plan
from deepcrf_ext.paper.page import write_report
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.records.run_folder import create_run_folder
from deepcrf_ext.records.steps import Steps, read_json
from deepcrf_ext.training.interrupt import Stopped, StopRequest
from deepcrf_ext.training.trainer import Trainer
from deepcrf_ext.whole_files import make_folder, write_json

BASELINE = "unary-3scales"


class Reproduction:
    """One reproduction in its folder; every method is done once and remembered there.

    Args:
        plan: what to train and measure.
        folder: where everything goes; made if it does not exist.
        command: the command line, for the records.

    Raises InputError if the folder holds a reproduction with other settings of which something is
    done, or other files.
    """

    def __init__(self, plan: Plan, folder: Path, command: str) -> None:
        self.plan = replace(plan, train=replace(plan.train, output=folder / "train"))
        self.folder, self.command = folder, command
        self.variants = plan.variants()
        file = folder / "plan.json"
        if not file.exists() and folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"output: {folder} holds files, and no reproduction; choose another folder"
            )
        self.steps = Steps(folder / "steps", command)
        if any((folder / "steps").glob("*.json")) or (folder / "train" / "last.pt").exists():
            changed = Plan.from_dict(read_json(file)).differences(plan)
            if changed:
                raise InputError(
                    f"output: {folder} holds a reproduction with other settings "
                    f"({'; '.join(changed)}); choose another folder"
                )
        else:
            make_folder(folder)
            write_json(file, plan.as_dict())

    def run(self) -> Path:
        """Everything that is not done yet, then the report; returns its path.

        Raises:
            InputError: data or settings that cannot be used.
            TrainingError: a loss is not finite.
            OSError: a file cannot be written.
        """
        data = self.plan.train.data
        used = dict.fromkeys((data.train_split, data.val_split, *self.plan.splits))
        refuse_bad_files(*map(self._dataset, used))
        training = self.steps.run("train", self._train)
        splits = {split: self._measure_split(split) for split in self.plan.splits}
        measured = self._dataset(self.plan.splits[0])
        results = {
            "command": self.command,
            "plan": self.plan.as_dict(),
            "classes": list(measured.classes),
            "palette": measured.palette.tolist(),
            "training": training,
            "splits": splits,
        }
        write_json(self.folder / "results.json", results)
        return write_report(results, self.folder)

    def _dataset(self, split: str) -> SegmentationDataset:
        """A split as this plan uses it."""
        data, plan = self.plan.train.data, self.plan
        full = open_dataset(data, split=split, seed=plan.train.seed, strict=False)
        images = plan.train_images if split == data.train_split else plan.eval_images
        return Reduced(full, images, plan.max_side)

    def _train(self) -> dict[str, Any]:
        """Trains, or goes on from the newest checkpoint."""
        config = self.plan.train
        train_set = self._dataset(config.data.train_split)
        run = self.folder / "train"
        last = run / "last.pt"
        checkpoint = last if last.exists() else None
        val_set = self._dataset(config.data.val_split)
        trainer = Trainer(config, train_set, val_set, checkpoint=checkpoint)
        if checkpoint is None:
            for file in run.glob("*"):  # of a run that was killed before its first checkpoint
                file.unlink()
            create_run_folder(config)
        with StopRequest() as stop:
            finished = trainer.fit(run, stop)
        if not finished:
            raise Stopped(stop.exit_code)
        return {
            "images": len(train_set),
            "epochs": trainer.progress.epoch,
            "steps": trainer.progress.step,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "device": str(trainer.device),
        }

    @cached_property
    def _model(self) -> tuple[DeepCRF, dict[str, Any]]:
        """The trained model and what its checkpoint says of itself."""
        device = choose_device(self.plan.train.device)
        model, _, metadata = load_model(self.folder / "train", device)
        return model, metadata

    def _measure_split(self, split: str) -> dict[str, Any]:
        """Scores of every variant on a split, their gains over the unary, and the examples."""
        rows = {}
        for name, variant in self.variants.items():
            print(f"{split}: {name}", flush=True)
            step = f"evaluate-{split}-{name}"
            record = self.steps.run(step, partial(self._measure_variant, split, name, variant))
            rows[name] = {**record, "potentials": describe(variant)}
        names = list(rows)
        baseline, final = BASELINE if BASELINE in rows else names[0], names[-1]
        ious = {name: record["result"]["scores"]["iou"] for name, record in rows.items()}
        for name, record in rows.items():
            record["gains"] = gains(ious[baseline], ious[name])
        return {
            "images": rows[baseline]["result"]["images"],
            "images_in_split": rows[baseline]["result"]["images_in_split"],
            "baseline": baseline,
            "final": final,
            "rows": rows,
            "examples": self.steps.run(
                f"pictures-{split}-{final}",
                partial(self._pictures, split, baseline, final, rows),
            ),
        }

    def _measure_variant(self, split: str, name: str, variant: Variant) -> dict[str, Any]:
        """Measures a variant on a split."""
        model, metadata = self._model
        dataset = self._dataset(split)
        assert isinstance(dataset, Reduced)
        return {
            "row": name,
            "split": split,
            "images": len(dataset),
            "images_in_split": len(dataset.dataset),
            "checkpoint": {key: metadata[key] for key in ("epoch", "step")},
            **examples.measure(
                model, dataset, name, variant, self.plan.train.amp, self.plan.dense_crf
            ),
        }

    def _pictures(
        self, split: str, baseline: str, final: str, rows: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws the examples of a split."""
        before, after = (rows[name]["result"]["image_iou"] for name in (baseline, final))
        folder = Path("pictures") / split / final
        entries = examples.draw(
            self._model[0],
            self._dataset(split),
            {name: self.variants[name] for name in (baseline, final)},
            examples.choose(before, after, self.plan.examples),
            self.folder / folder,
            self.plan.train.amp,
            self.plan.dense_crf,
        )
        for entry in entries:
            entry["iou"] = {baseline: before[entry["index"]], final: after[entry["index"]]}
        return {"folder": str(folder), "images": entries}


def gains(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> dict[str, float | None]:
    """How much the IoU of each class rises, in points; None where it is undefined in either."""
    pairs = {name: (iou, after[name]) for name, iou in before.items()}
    return {
        name: None if first is None or second is None else 100 * (second - first)
        for name, (first, second) in pairs.items()
    }


def describe(variant: Variant) -> str:
    """The potentials of a variant in words."""
    unary = {None: "no unary", "unary": "unary", "unary_1scale": "unary, largest scale only"}
    parts = [
        unary.get(variant.unary, str(variant.unary)),
        *(name.replace("_", "/") for name in variant.relations),
    ]
    return " + ".join([*parts, "dense CRF"] if variant.dense_crf else parts)
