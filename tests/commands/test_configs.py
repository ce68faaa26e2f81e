"""The settings in `configs` are those that the records in `benchmarks/results` tell of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepcrf_ext.config import to_dict
from deepcrf_ext.train import parse_new_run

ROOT = Path(__file__).parents[2]
WHERE_IT_RAN = {"output", "data.root", "init_from", "backbone_weights"}


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of settings, with their values as JSON has them."""
    for name, value in values.items():
        if name == "class_balance" and isinstance(value, dict):
            yield prefix + name, list(value.values())
        elif isinstance(value, dict) and value.get("kind") == "offsets":
            yield prefix + name, (value["offsets"], value["step"])  # such a box has no other size
        elif isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.loads(json.dumps(value))


def recorded(name: str) -> list[dict[str, Any]]:
    """The settings of each training that a record tells of."""
    record = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    if "plan" in record:
        settings = record["plan"]["train"]
        settings["model"]["potentials"] = "all"  # null stood for all of them then
        return [settings]
    return [training["config"] for training in record["training"]]


@pytest.mark.parametrize(
    ("config", "record", "training"),
    [
        ("camvid.yaml", "camvid-small.json", 0),
        ("camvid-pretrained.yaml", "camvid-pretrained.json", 0),
        ("camvid-pretrained-larger.yaml", "camvid-pretrained.json", 1),
        ("camvid-pretrained-crf.yaml", "camvid-pretrained.json", 2),
        ("camvid-vgg.yaml", "camvid-vgg.json", 0),
        ("camvid-vgg-crf.yaml", "camvid-vgg.json", 1),
        ("camvid-scratch.yaml", "camvid-scratch.json", 0),
        ("camvid-scratch-crf.yaml", "camvid-scratch.json", 1),
    ],
)
def test_settings_are_those_of_the_record(config: str, record: str, training: int) -> None:
    """Presets may change; what a committed file stands for may not. A record has what there was."""
    settings = dict(leaves(to_dict(parse_new_run(["--config", str(ROOT / "configs" / config)]))))
    expected = dict(leaves(recorded(record)[training]))
    common = settings.keys() & expected.keys() - WHERE_IT_RAN
    assert len(common) > 30
    assert {name: settings[name] for name in common} == {name: expected[name] for name in common}
