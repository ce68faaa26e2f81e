"""What the options of the reproduce command, its budgets and its recipes make up: a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deepcrf_ext import reproduce as command
from deepcrf_ext.config import preset
from deepcrf_ext.data import DATASETS
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS
from deepcrf_ext.paper.budgets import BUDGETS, Plan
from deepcrf_ext.train import parse_new_run


@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_recipe_fits(data, budget, tmp_path):
    root = [] if data == "scenes" else ["--data.root", str(tmp_path)]
    plan, folder = command.parse(
        ["--data.dataset", data, "--budget", budget, "--output", str(tmp_path / "o"), *root]
    )
    assert folder == tmp_path / "o"
    assert plan.train.data.dataset == data
    assert list(plan.variants()) == list(VARIANTS)
    assert (plan.train.model.preset == "paper") == (budget == "paper")
    preset_model = preset(plan.train.model.preset).model
    assert plan.train.model.relations == preset_model.relations
    assert plan.train.model.share_blocks == preset_model.share_blocks
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))).differences(plan) == []


def test_plans_without_named_potentials_train_all_rows(tmp_path):
    arguments = ["--data.dataset", "scenes", "--output", str(tmp_path / "o")]
    plan, _ = command.parse(arguments)
    assert plan.train.model.potentials == "all"
    assert command.parse([*arguments, "--train.model.potentials", "null"])[0] == plan
    earlier = json.loads(json.dumps(plan.as_dict()))
    earlier["train"]["model"]["potentials"] = None
    assert Plan.from_dict(earlier).differences(plan) == []
    del earlier["splits"]
    with pytest.raises(InputError, match="plan: lacks 'splits'"):
        Plan.from_dict(earlier)


def test_a_plan_may_change_in_what_no_figure_depends_on(tmp_path):
    arguments = ["--data.dataset", "camvid", "--output", str(tmp_path / "o")]
    plan, _ = command.parse([*arguments, "--data.root", str(tmp_path)])
    free = ["--device", "cpu", "--train.save-minutes", "7", "--train.data.workers", "2"]
    moved = [*arguments, "--data.root", str(tmp_path / "elsewhere"), "--splits", "test", *free]
    assert command.parse(moved)[0].differences(plan) == []
    (change,) = command.parse([*moved, "--train.epochs", "77"])[0].differences(plan)
    assert change == f"train.epochs: 77, then {plan.train.epochs}"


def test_the_optimisers_settings_override_the_budgets(tmp_path):
    arguments = [
        "--data.dataset",
        "camvid",
        "--budget",
        "small",
        "--data.root",
        str(tmp_path),
        "--output",
        "o",
    ]
    adamw = preset("small").optim
    adamw = replace(adamw, optimiser="adamw", lr=1e-3, lr_initialised=1e-4, weight_decay=0.01)
    chosen = [*arguments, "--train.optim.optimiser", "adamw"]
    assert command.parse(chosen)[0].train.optim == adamw
    plan, _ = command.parse([*chosen, "--train.optim.lr", "0.5"])
    assert plan.train.optim == replace(adamw, lr=0.5)


def test_the_small_camvid_recipe_is_its_config_file(tmp_path):
    root = Path(__file__).parents[2]
    arguments = ["--data.dataset", "camvid", "--data.root", str(tmp_path), "--budget", "small"]
    plan, _ = command.parse([*arguments, "--output", str(tmp_path / "o")])
    written = parse_new_run(
        ["--config", str(root / "configs/camvid.yaml"), "--data.root", str(tmp_path)]
    )
    assert plan.train == written


def test_options_override_the_budget(tmp_path):
    plan, _ = command.parse(
        [
            "--data.dataset",
            "camvid",
            "--output",
            "o",
            "--data.root",
            "r",
            "--train.epochs",
            "9",
            "--max_side",
            "null",
        ]
    )
    assert (plan.train.epochs, plan.max_side, plan.train_images) == (9, None, 184)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.dataset mnist --output o", "data.dataset: got 'mnist'"),
        ("--budget huge --output o", "budget: got 'huge'"),
        ("--data.dataset camvid --output o", "data.root: not given"),
        ("--output o --data.root r", "must be left out for scenes"),
        ("--output o --train.data.root r", "--data.root"),
        ("--data.dataset folder --data.root r --output o --train.data.masks m/**", "--data.masks"),
        ("--data camvid --output o", "data"),
        ("--output o --splits trainval", "'trainval'"),
        ("--data.dataset voc --data.root r --output o --splits test", "voc_submission"),
        ("--output o --max_side 0", "max_side"),
        ('--output o --train.model.potentials ["unary_1scale","x"]', "potentials"),
    ],
)
def test_bad_options_end_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments.split()) == 2
    errors = capsys.readouterr().err.strip()
    assert message in errors
    assert "\n" not in errors


def test_a_folder_of_ones_own_is_planned_and_found_again(tmp_path):
    arguments = [
        "--data.dataset",
        "folder",
        "--data.root",
        str(tmp_path),
        "--output",
        str(tmp_path / "o"),
    ]
    arguments += ["--data.labels", "{0: ground, 255: ball, '#c8140a': ignore}"]
    plan, _ = command.parse(arguments)
    assert plan.train.data.labels == {0: "ground", 255: "ball", "#c8140a": "ignore"}
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))).differences(plan) == []
