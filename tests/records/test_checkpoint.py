"""Checkpoints survive what goes wrong while they are written or read."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from tiny_run import write_run

from deepcrf_ext.errors import InputError
from deepcrf_ext.records.checkpoint import (
    FORMAT,
    checkpoint_digest,
    find_checkpoint,
    load_checkpoint,
    load_model,
)
from deepcrf_ext.records.checkpoint import save_checkpoint as save
from deepcrf_ext.train import parse_resume


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", tmp_path / "camvid")


def test_round_trip(tmp_path):
    state = {"weights": {"a": torch.arange(5.0)}, "epoch": 3, "names": ["x"], "best": -1.0}
    save(tmp_path / "a.pt", state)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["weights"]["a"], torch.arange(5.0))
    assert {key: loaded[key] for key in ("epoch", "names", "best")} == {
        "epoch": 3,
        "names": ["x"],
        "best": -1.0,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_checkpoint_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "a.pt", {"epoch": 3})
    finally:
        os.umask(before)
    assert (tmp_path / "a.pt").stat().st_mode & 0o777 == 0o640


def test_model_comes_back_as_it_was(run):
    model, config, metadata = load_model(run)
    again, _, _ = load_model(str(run / "last.pt"))
    assert not model.training
    assert config.data.dataset == "camvid"
    assert (metadata["epoch"], metadata["step"], len(metadata["classes"])) == (2, 7, 11)
    assert len(metadata["palette"]) == 11
    image = torch.rand(1, 3, 20, 30) * 255
    assert torch.equal(model.predict(image, "1unary+2pair"), again.predict(image, "1unary+2pair"))


def test_potentials_in_another_order_are_loaded_by_name(run):
    state = load_checkpoint(run / "last.pt")
    names = ["above_below", "unary_1scale", "surrounding", "unary"]
    state["config"]["model"]["potentials"] = names
    save(run / "other.pt", state)
    model, other = load_model(run)[0], load_model(run / "other.pt")[0]
    assert list(other.potentials) == names != list(model.potentials)
    image = torch.rand(1, 3, 20, 30) * 255
    found, expected = (net.predict(image, "1unary+2pair") for net in (other, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("read", [load_model, lambda p: parse_resume(["--resume", str(p)])])
def test_settings_of_another_version_name_the_file(run, tmp_path, read):
    state = load_checkpoint(run / "last.pt")
    state["config"]["model"]["later"] = 1
    save(tmp_path / "c.pt", state)
    with pytest.raises(
        InputError, match=r"^\S*/c.pt: of another version: settings: model.later: unk"
    ):
        read(tmp_path / "c.pt")


def test_best_is_preferred(run):
    state = load_checkpoint(run / "last.pt")
    save(run / "best.pt", {**state, "epoch": 1})
    assert load_model(run)[2]["epoch"] == 1
    assert find_checkpoint(run).name == "last.pt"


def test_a_digest_is_of_the_whole_file(tmp_path):
    content = bytes(3_000_000)
    digests = []
    for index, changed in enumerate((content, content, content[:-1] + b"x", b"x" + content[1:])):
        file = tmp_path / f"{index}.pt"
        file.write_bytes(changed)
        digests.append(checkpoint_digest(file))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
def test_truncated_file_is_named(run, kept):
    file = run / "last.pt"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"last\.pt is truncated"):
        load_model(run)


def test_other_files_are_refused(run, tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"model": {}}, other)
    with pytest.raises(InputError, match=r"other\.pt is not a checkpoint"):
        load_model(other)
    other.write_text("a picture")
    with pytest.raises(InputError, match=r"other\.pt"):
        load_model(other)
    with pytest.raises(InputError, match=r"missing\.pt"):
        load_model(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_model(tmp_path)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": FORMAT, "config": Attack()}, tmp_path / "a.pt")
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_number_of_classes(run):
    state = load_checkpoint(run / "last.pt")
    save(run / "last.pt", {**state, "classes": state["classes"][:7]})
    with pytest.raises(InputError, match=r"last\.pt: potentials\..*the model needs"):
        load_model(run)


def test_write_that_breaks_off_leaves_the_earlier_checkpoint(tmp_path):
    file = tmp_path / "last.pt"
    save(file, {"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"earlier one is intact.*last\.pt") as caught:
            save(file, {"epoch": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert load_checkpoint(file)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_full_disk_on_the_last_block_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "last.pt"
    save(file, {"epoch": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*intact.*last\.pt"):
        save(file, {"epoch": 2})
    assert load_checkpoint(file)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nothing is written.*gone"):
        save(tmp_path / "gone" / "last.pt", {"epoch": 2})
