"""`python -m deepcrf_ext.reproduce`: the paper's tables and figures, from training to report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from deepcrf_ext.cli import parsing
from deepcrf_ext.cli.options import add_dense_crf_options, add_device_option, dense_crf_settings
from deepcrf_ext.config import TrainConfig
from deepcrf_ext.data import DATASETS, SegmentationDataset, open_dataset
from deepcrf_ext.data.reduced import Reduced
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import DeepCRF, Variant
from deepcrf_ext.paper import examples
from deepcrf_ext.paper.budgets import BUDGETS, Plan, recipe
from deepcrf_ext.paper.page import write_report
from deepcrf_ext.parallel.device import choose_device
from deepcrf_ext.records.checkpoint import load_model
from deepcrf_ext.records.run_folder import create_run_folder
from deepcrf_ext.records.steps import Steps, read_json, write_text
from deepcrf_ext.training.interrupt import Stopped, StopRequest
from deepcrf_ext.training.trainer import Trainer

BASELINE = "unary-3scales"

_DESCRIPTION = """Reproduce the paper's experiments: train, measure every row of its Table I and
the gains of each class as in Table II, draw pictures as in Figures 6-10, and write report.html, one
file that opens anywhere. Finished work is kept: end the command at any time, run it again, and it
goes on.

Writes below the output folder: report.html and results.json (every figure, with the command, the
commit, the versions and the machine that made it), train/ (a run folder as of deepcrf_ext.train),
steps/ (one JSON file for each finished step), figures/ and pictures/."""


_CUTS = {
    "train_images": "Training images to use, spread over the split. Set by the budget; null: all.",
    "eval_images": "Images of each measured split to use. Set by the budget; null: all.",
    "max_side": "Longest side in pixels that images are shrunk to. Set by the budget; null: none.",
}
"""Options of the command and fields of `Plan` that cut the data down, with their help."""


class Reproduction:
    """One reproduction in its folder; every method is done once and remembered there.

    Args:
        plan: what to train and measure.
        folder: where everything goes; made if it does not exist.
        command: the command line, for the records.

    Raises InputError if the folder holds a reproduction with other settings.
    """

    def __init__(self, plan: Plan, folder: Path, command: str) -> None:
        self.plan = replace(plan, train=replace(plan.train, output=folder / "train"))
        self.folder, self.command = folder, command
        self.rows = plan.variants()
        self.steps = Steps(folder / "steps", command)
        file = folder / "plan.json"
        if file.exists():
            changed = Plan.from_dict(read_json(file)).differences(plan)
            if changed:
                raise InputError(
                    f"output: {folder} holds a reproduction with other settings "
                    f"({'; '.join(changed)}); choose another folder"
                )
        else:
            write_text(file, json.dumps(plan.as_dict(), indent=1) + "\n")

    def run(self) -> Path:
        """Everything that is not done yet, then the report; returns its path.

        Raises:
            InputError: data or settings that cannot be used.
            TrainingError: a loss is not finite.
            OSError: a file cannot be written.
        """
        training = self.steps.run("train", self._train)
        splits = {split: self._measure_split(split) for split in self.plan.splits}
        data = self._dataset(self.plan.splits[0])
        results = {
            "command": self.command,
            "plan": self.plan.as_dict(),
            "classes": list(data.classes),
            "palette": data.palette.tolist(),
            "training": training,
            "splits": splits,
        }
        write_text(self.folder / "results.json", json.dumps(results, indent=1) + "\n")
        return write_report(results, self.folder)

    def _dataset(self, split: str) -> SegmentationDataset:
        """A split as this plan uses it."""
        data, plan = self.plan.train.data, self.plan
        full = open_dataset(data, split=split, seed=plan.train.seed)
        images = plan.train_images if split == data.train_split else plan.eval_images
        return Reduced(full, images, plan.max_side)

    def _train(self) -> dict[str, Any]:
        """Trains, or goes on from the newest checkpoint."""
        config = self.plan.train
        train_set = self._dataset(config.data.train_split)
        trainer = Trainer(config, train_set, self._dataset(config.data.val_split))
        run = self.folder / "train"
        if (run / "last.pt").exists():
            trainer.restore(run / "last.pt")
        else:
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
        """Scores of every row on a split, their gains over the unary, and the examples."""
        rows = {}
        for name, row in self.rows.items():
            print(f"{split}: {name}", flush=True)
            step = f"evaluate-{split}-{name}"
            record = self.steps.run(step, partial(self._row, split, name, row))
            rows[name] = {**record, "potentials": describe(row)}
        names = list(rows)
        baseline, final = BASELINE if BASELINE in rows else names[0], names[-1]
        for record in rows.values():
            record["gains"] = _gains(rows[baseline], record)
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

    def _row(self, split: str, name: str, row: Variant) -> dict[str, Any]:
        """Measures a row on a split."""
        model, metadata = self._model
        dataset = self._dataset(split)
        assert isinstance(dataset, Reduced)
        return {
            "row": name,
            "split": split,
            "images": len(dataset),
            "images_in_split": len(dataset.dataset),
            "checkpoint": {key: metadata[key] for key in ("epoch", "step")},
            **examples.measure(model, dataset, name, row, self.plan.train.amp, self.plan.dense_crf),
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
            {name: self.rows[name] for name in (baseline, final)},
            examples.choose(before, after, self.plan.examples),
            self.folder / folder,
            self.plan.train.amp,
            self.plan.dense_crf,
        )
        for entry in entries:
            entry["iou"] = {baseline: before[entry["index"]], final: after[entry["index"]]}
        return {"folder": str(folder), "images": entries}


def _gains(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | None]:
    """How much the IoU of each class rises from one row's record to another's, in points."""
    ious = (record["result"]["scores"]["iou"] for record in (before, after))
    return {
        name: None if a is None or b is None else 100 * (b - a)
        for (name, a), b in zip(next(ious).items(), next(ious).values(), strict=True)
    }


def describe(row: Variant) -> str:
    """The potentials of a row in words."""
    unary = {None: "no unary", "unary": "unary", "unary_1scale": "unary, largest scale only"}
    parts = [
        unary.get(row.unary, str(row.unary)),
        *(name.replace("_", "/") for name in row.relations),
    ]
    return " + ".join([*parts, "dense CRF"] if row.dense_crf else parts)


def _parser() -> ArgumentParser:
    parser = parsing.make_parser("python -m deepcrf_ext.reproduce", _DESCRIPTION)
    parser.add_argument("--data", required=True, help=f"Data set, one of {', '.join(DATASETS)}.")
    budgets = "; ".join(f"{name}: {text}" for name, text in BUDGETS.items())
    parser.add_argument("--budget", default="tiny", help=f"How much is spent ({budgets}).")
    parser.add_argument("--output", type=Path, required=True, help="Folder for everything.")
    parser.add_argument("--root", type=Path | None, help="Folder of the data; none for scenes.")
    parser.add_argument(
        "--splits",
        nargs="+",
        type=str,
        default=["val"],
        help="Splits to measure. Settings are to be chosen on val; give test once they are.",
    )
    add_device_option(parser)
    for name, text in _CUTS.items():
        parser.add_argument(f"--{name}", type=PositiveInt | None, help=text)
    parser.add_argument(
        "--examples", type=PositiveInt, default=4, help="Pictures of each kind in the report."
    )
    add_dense_crf_options(parser)
    parser.add_class_arguments(TrainConfig, "train", skip={"output", "device"})
    return parser


def parse(argv: Sequence[str]) -> tuple[Plan, Path]:
    """The plan and the output folder of a command line: the budget's settings, then the options'.

    Raises InputError for options that do not fit.
    """
    parser = _parser()
    first = parsing.parse(parser, argv)
    for name, value, known in (("data", first.data, DATASETS), ("budget", first.budget, BUDGETS)):
        if value not in known:
            raise InputError(f"{name} is {value!r}; must be one of {', '.join(known)}")
    parser.set_defaults(recipe(first.data, first.budget))
    options = parsing.parse(parser, argv)
    data = options.train.data
    if data.dataset != first.data or data.root is not None:
        raise InputError("train.data: dataset and root are the options --data and --root")
    for split in options.splits:
        if DATASETS[first.data] and split not in DATASETS[first.data]:
            raise InputError(
                f"splits: {split!r} is none of {first.data}, which has "
                f"{', '.join(DATASETS[first.data])}"
            )
        if (first.data, split) == ("voc", "test"):
            raise InputError(
                "splits: voc's test has no public labels; deepcrf_ext.voc_submission writes the "
                "archive for its server"
            )
    train = replace(options.train, data=replace(data, root=options.root), device=options.device)
    cuts = {name: None if options[name] is None else int(options[name]) for name in _CUTS}
    plan = Plan(
        train,
        tuple(dict.fromkeys(options.splits)),
        int(options.examples),
        dense_crf=dense_crf_settings(options, True, "the row full"),
        **cuts,
    )
    return plan, options.output


def _run(argv: Sequence[str]) -> int:
    plan, folder = parse(argv)
    command = shlex.join(["python", "-m", "deepcrf_ext.reproduce", *argv])
    try:
        report = Reproduction(plan, folder, command).run()
    except Stopped as stopped:
        print(f"stopped; the same command goes on:\n  {command}", file=sys.stderr)
        return stopped.exit_code
    print(f"report: {report}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for bad input, 130 or 143 when stopped."""
    return parsing.run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
