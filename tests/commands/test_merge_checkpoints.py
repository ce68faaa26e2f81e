"""Potentials trained by runs of their own, merged: the same as trained together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import write_camvid

from deepcrf_ext import merge_checkpoints, train
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = ("unary", "unary_1scale", "surrounding", "above_below")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("camvid")
    write_camvid(root, "train", 4)
    return write_camvid(root, "val", 1)


def run(folder: Path, data: Path, potentials: tuple[str, ...], *more: str) -> Path:
    arguments = ["--output", str(folder), "--data.root", str(data), "--data.dataset", "camvid"]
    arguments += ["--data.crop", "[24, 30]", "--epochs", "2", "--batch_size", "2"]
    arguments += ["--model.widths", "[4, 6]", "--model.convs", "[1, 1]", "--device", "cpu"]
    arguments += ["--model.pooled_blocks", "2", "--model.head_widths", "[8]", "--model.hidden", "8"]
    arguments += ["--model.potentials", str(list(potentials)).replace("'", "")]
    assert train.main([*arguments, *more]) == 0
    return folder


def merge(output: Path, *runs: Path) -> int:
    return merge_checkpoints.main([*map(str, runs), "--output", str(output)])


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (load_checkpoint(folder / "last.pt")["model"] for folder in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_merged_run_is_the_joint_run_and_goes_on_like_it(data, tmp_path, capsys):
    joint = run(tmp_path / "joint", data, ALL, "--warm_start", "0")
    apart = [run(tmp_path / name, data, (name,), "--warm_start", "0") for name in ALL]
    merged = tmp_path / "merged"
    for folder in apart:  # however well a potential did by itself
        state = load_checkpoint(folder / "last.pt")
        save_checkpoint(
            folder / "last.pt", {**state, "progress": {**state["progress"], "best": 0.99}}
        )
    capsys.readouterr()
    assert merge(merged, *reversed(apart)) == 0
    assert capsys.readouterr().out.startswith(", ".join(ALL))
    assert_same_weights(joint, merged)
    assert (merged / "run.json").exists()
    weights = DeepCRF.from_pretrained(merged / "weights").state_dict()
    assert all(w.equal(weights[n]) for n, w in load_model(merged)[0].state_dict().items())
    for folder in (joint, merged):
        assert train.main(["--resume", str(folder), "--epochs", "3"]) == 0
    assert_same_weights(joint, merged)
    model, _, metadata = load_model(merged / "best.pt")
    assert model.potential_names == ALL
    assert metadata["step"] == 6


def test_relations_of_a_warm_start_bring_their_unary(data, tmp_path):
    chosen = ("unary", "surrounding", "above_below")
    more = ("--warm_start", "0.5")
    joint = run(tmp_path / "joint", data, chosen, *more)
    apart = [run(tmp_path / name, data, ("unary", name), *more) for name in chosen[1:]]
    assert merge(tmp_path / "merged", *apart) == 0
    assert_same_weights(joint, tmp_path / "merged")


def test_what_cannot_be_merged(data, tmp_path, capsys):
    short = ("--warm_start", "0", "--epochs", "1")
    unary = run(tmp_path / "unary", data, ("unary",), *short)
    wider = run(tmp_path / "wider", data, ("surrounding",), *short, "--model.pairwise_hidden", "9")
    longer = run(tmp_path / "longer", data, ("surrounding",), "--warm_start", "0")
    capsys.readouterr()
    for other, reason in ((wider, "model settings"), (longer, "steps")):
        assert merge(tmp_path / "merged", unary, other) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert f"other {reason}" in error
        assert error.count("\n") == 1
    assert merge(unary, unary) == 2
    assert "exists already" in capsys.readouterr().err
    assert merge(tmp_path / "merged", tmp_path / "nothing") == 2


def test_checkpoints_that_cannot_be_merged_are_named(data, tmp_path, capsys):
    unary = run(tmp_path / "unary", data, ("unary",), "--warm_start", "0", "--epochs", "1")
    for change, reason in (
        (lambda state: state.pop("optimiser"), "is of a version whose runs cannot be merged"),
        (lambda state: state["optimiser"]["param_groups"].clear(), "is of a version whose runs"),
        (lambda state: state["config"]["model"].update(share_blocks=True), "share blocks, and"),
        (lambda state: state["config"].update(ema=0.5), "other averages of the weights (ema): "),
        (lambda state: state["classes"].reverse(), "other classes: "),
    ):
        state = load_checkpoint(unary / "last.pt")
        change(state)
        save_checkpoint(tmp_path / "changed.pt", state)
        capsys.readouterr()
        assert merge(tmp_path / "merged", unary, tmp_path / "changed.pt") == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path / "changed.pt") in error
        assert reason in error
        assert not (tmp_path / "merged").exists()
