"""Settings: presets, the dictionary form of checkpoints, and what the command line refuses."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcrf_ext.config import (
    PRESETS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PhaseConfig,
    RelationConfig,
    TrainConfig,
    from_dict,
    preset,
    to_dict,
)
from deepcrf_ext.errors import InputError
from deepcrf_ext.train import main, parse_new_run


def test_paper_preset_is_the_paper():
    config = preset("paper")
    assert config.model.widths == (64, 128, 256, 512, 512)
    assert config.model.convs == (2, 2, 3, 3, 3)
    assert config.model.head_widths == (4096, 512, 512)
    assert config.model.pooled_blocks == 5
    assert config.model.hidden == 512
    assert config.model.scales == (1.2, 0.8, 0.4)
    assert not config.model.batch_norm
    assert (config.optim.lr, config.optim.lr_initialised) == (1e-3, 1e-4)
    assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 5e-4)
    assert (config.optim.schedule, config.optim.decay) == ("exponential", 0.97)
    with pytest.raises(InputError, match="huge"):
        preset("huge")


def test_cvpr16_preset_is_the_later_form_of_the_paper():
    model, first = preset("cvpr16").model, preset("paper").model
    assert (model.widths, model.convs, model.head_widths, model.scales) == (
        first.widths, first.convs, first.head_widths, first.scales,
    )  # fmt: skip
    assert model.pooled_blocks == 4
    assert model.share_blocks
    assert model.head_per_scale
    assert model.pooling_windows == (5, 9)
    assert model.upsampling == "bilinear"
    assert model.iterations == 3
    assert [(r.width, r.height) for r in model.relations.values()] == [(0.4, 0.4), (0.4, 0.4)]
    assert preset("cvpr16").data.scale_range == (0.7, 1.2)
    assert first.pooling_windows == ()
    assert {first.share_blocks, first.head_per_scale} == {False}
    narrow = preset("small-cvpr16").model
    assert max(narrow.widths) < max(model.widths)
    assert narrow.share_blocks


@pytest.mark.parametrize("name", PRESETS)
def test_preset_by_option_is_the_preset(name):
    assert parse_new_run(["--model.preset", name]) == preset(name)


def test_options_are_judged_beside_those_of_their_preset():
    later = ["--model.preset", "small-cvpr16", "--model.pooled-blocks", "4"]
    assert parse_new_run(later).model.pooled_blocks == 4
    with pytest.raises(InputError, match="model.pooled_blocks: got 4, must be 0 to 2"):
        parse_new_run(["--model.pooled-blocks", "4"])
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        parse_new_run(["--help"])
    assert f"default: {[*preset('small').model.widths]}" in " ".join(text.getvalue().split())


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_yaml(name):
    config = preset(name)
    config.data.root = Path("some/where")
    config.model.relations["left"] = RelationConfig("offsets", offsets=(0, 0, -2, -1))
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_from_dict_names_what_does_not_fit():
    values = to_dict(preset("small"))
    values["model"]["colour"] = 3
    with pytest.raises(InputError, match="colour"):
        from_dict(values)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 2.5, "epochs: got 2.5, must be int"),
        ("epochs", True, "epochs: got True, must be int"),
        ("amp", "yes", "amp: got 'yes', must be bool or one of bfloat16, float16 or null"),
        ("batch_size", 0, "batch_size"),
        ("data.palette_masks", "grey", "data.palette_masks: got 'grey', must be one of indices"),
        ("optim.schedule", "sine", "optim.schedule: got 'sine', must be one of exponential"),
        ("data.crop", [3], "data.crop: got [3], must be a list of int, int or null"),
        ("model.widths", [16, "wide"], "model.widths[1]: got 'wide', must be int"),
        ("model.relations", {"left": {"width": 0.5}}, "model.relations.left: "),
        ("model.relations", {"left": {"kind": "under"}}, "model.relations.left.kind: got 'under'"),
        ("model", 3, "model: got 3, must be a mapping"),
    ],
)
def test_from_dict_takes_no_value_of_another_type(name, value, message):
    values = to_dict(preset("small"))
    group, _, key = name.rpartition(".")
    (values[group] if group else values)[key] = value
    with pytest.raises(InputError, match=f"^settings: {re.escape(message)}"):
        from_dict(values)


def test_from_dict_reads_phases_and_whole_numbers_for_floats():
    phases = [{"objective": "piecewise", "share": 1}, {"objective": "end_to_end"}]
    config = from_dict({"objective": phases, "optim": {"lr": 1}, "warm_start": 0})
    assert config.objective == (PhaseConfig("piecewise", 1.0), PhaseConfig("end_to_end"))
    assert (config.optim.lr, type(config.optim.lr)) == (1.0, float)
    assert from_dict(to_dict(config)) == config


def test_options_override_file_and_file_overrides_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {preset: paper, hidden: 64}\nepochs: 7\n")
    config = parse_new_run(["--config", str(file), "--epochs", "9"])
    assert config.model.widths == preset("paper").model.widths
    assert config.optim == preset("paper").optim
    assert (config.model.hidden, config.epochs) == (64, 9)


def test_saved_settings_are_a_config_file(tmp_path):
    config = parse_new_run(["--model.preset", "paper", "--data.crop", "[20, 30]"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert parse_new_run(["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epochs", "0"], "epochs"),
        (["--epochs", "many"], "epochs"),
        (["--colour", "3"], "--colour"),
        (["--data.dataset", "imagenet"], "data.dataset"),
        (["--data.dataset", "camvid"], "root"),
        (["--data.dataset", "camvid", "--data.root", "/not/here"], "/not/here"),
        (["--data.crop", "[0, 4]"], "data.crop"),
        (["--data.scale_range", "[2, 1]"], "data.scale_range"),
        (["--data.workers", "-1"], "data.workers"),
        (["--model.potentials", "[unary, left]"], "left"),
        (["--model.pooled_blocks", "9"], "model.pooled_blocks"),
        (["--model.scales", "[0.4, 1.2]"], "model.scales"),
        (["--model.pooling_windows", "[4]"], "model.pooling_windows"),
        (["--optim.lr", "-1"], "optim.lr"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "abacus"], "abacus"),
        (["--config", "/not/here.yaml"], "/not/here.yaml"),
        (["--model.preset", "paper", "--vgg_weights", "/not/here.pth"], "/not/here.pth"),
        (["--resume", "/not/here"], "/not/here"),
        (["--resume", "/not/here", "--optim.lr", "1"], "--optim.lr"),
    ],
)
def test_bad_option_is_one_line_and_exit_code_2(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in ("output stride", "Mean-field iterations", "--resume", "--data.scale-range"):
        assert words in text


def test_inconsistent_settings():
    with pytest.raises(
        InputError, match=r"model\.convs: got \(1,\), must be one number .* 2 blocks"
    ):
        ModelConfig(widths=(4, 4), convs=(1,))
    with pytest.raises(InputError, match=r"model\.widths: got no block, must be at least one"):
        ModelConfig(widths=(), convs=())
    with pytest.raises(
        InputError, match=r"model\.relations: got the name 'unary', must be no unary's"
    ):
        ModelConfig(relations={"unary": RelationConfig("surrounding")})
    with pytest.raises(InputError, match="workers"):
        DataConfig(workers=-1)


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        (TrainConfig, {"epochs": 0}, {"epochs": 1}),
        (TrainConfig, {"batch_size": 0}, {"batch_size": 1}),
        (TrainConfig, {"save_minutes": 0.0}, {"save_minutes": 0.1}),
        (TrainConfig, {"seed": -1}, {"seed": 0}),
        (TrainConfig, {"label_smoothing": 1.0}, {"label_smoothing": 0.9}),
        (TrainConfig, {"ema": 1.0}, {"ema": 0.9}),
        (TrainConfig, {"warm_start": 1.0}, {"warm_start": 0.0}),
        (OptimConfig, {"lr": 0.0}, {"lr": 1e-9}),
        (OptimConfig, {"warm_up": -0.1}, {"warm_up": 0.0}),
        (OptimConfig, {"momentum": 1.0}, {"momentum": 0.0}),
        (OptimConfig, {"weight_decay": -0.1}, {"weight_decay": 0.0}),
        (ModelConfig, {"dropout": 1.0}, {"dropout": 0.0}),
        (ModelConfig, {"iterations": -1}, {"iterations": 0}),
        (ModelConfig, {"relation_weight": 0.0}, {"relation_weight": 1e-9}),
        (ModelConfig, {"pooling_windows": (2,)}, {"pooling_windows": (1, 3)}),
        (ModelConfig, {"pooling_windows": (-1,)}, {"pooling_windows": ()}),
        (ModelConfig, {"widths": (4, 0, 4, 4, 4)}, {"widths": (1, 1, 1, 1, 1)}),
        (ModelConfig, {"head_widths": (4, 0)}, {"head_widths": ()}),
        (ModelConfig, {"hidden": 0}, {"hidden": 1}),
        (ModelConfig, {"pairwise_hidden": 0}, {"pairwise_hidden": 1}),
        (OptimConfig, {"warm_up": math.nan}, {"warm_up": 0.5}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_the_borders_of_settings(kind: type, bad: dict[str, Any], good: dict[str, Any]) -> None:
    kind(**good)
    ((name, value),) = bad.items()
    with pytest.raises(InputError, match=rf"\b{name}: got {re.escape(str(value))}"):
        kind(**bad)
