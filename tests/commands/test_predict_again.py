"""The predict command over a folder that it, or another run, has written to before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcrf_ext import predict
from deepcrf_ext.data import read_labels
from deepcrf_ext.predict import main
from deepcrf_ext.records.checkpoint import load_checkpoint, save_checkpoint

NAMES = ("a", "b", "c")


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_image(tmp_path / "photos" / f"{name}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def arguments(run: Path, photos: Path) -> list[str]:
    return [str(photos), "--checkpoint", str(run), "--output", str(photos.parent / "out")]


def times(output: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (output / "labels").glob("*.png")}


def test_a_stopped_run_goes_on(arguments, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    assert "earlier" not in capsys.readouterr().out
    output = tmp_path / "out"
    whole, before = (output / "labels" / "b.png").read_bytes(), times(output)
    (output / "labels" / "b.png").unlink()
    (output / "labels" / ".b.png.partial").write_bytes(b"half")  # of a killed process
    assert main(arguments) == 0
    assert "3 of 3 images segmented" in (out := capsys.readouterr().out)
    assert "(2 of them earlier)" in out
    assert (output / "labels" / "b.png").read_bytes() == whole
    assert sorted(path.name for path in (output / "labels").iterdir()) == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert {name: time for name, time in times(output).items() if name != "b"} == {
        name: time for name, time in before.items() if name != "b"
    }
    assert main([*arguments, "--marginals"]) == 0  # labels alone are not enough
    assert len(list((output / "marginals").iterdir())) == 3


@pytest.mark.parametrize("stage", ["labels", "overlays", "marginals"])
def test_a_run_stopped_while_writing_leaves_whole_files(
    arguments, tmp_path, monkeypatch, stage
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def half(file, *_: object, **__: object) -> None:
        file.write(b"half")
        stop()

    with monkeypatch.context() as patch:
        if stage == "labels":
            patch.setattr(predict, "write_labels", half)
        elif stage == "overlays":
            patch.setattr(predict, "overlay", stop)
        else:
            patch.setattr(np, "savez_compressed", half)
        assert main([*arguments, "--marginals"]) == 130
    output = tmp_path / "out"
    assert not list((output / stage).iterdir())
    for path in output.rglob("*.png"):
        Image.open(path).load()
    assert main([*arguments, "--marginals"]) == 0
    for folder, suffix in (("labels", "png"), ("overlays", "png"), ("marginals", "npz")):
        found = sorted(path.name for path in (output / folder).iterdir())
        assert found == [f"{name}.{suffix}" for name in NAMES]


def test_images_that_changed_or_are_new_are_done_alone(arguments, photos, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    output = tmp_path / "out"
    before, old = times(output), read_labels(output / "labels" / "a.png")
    write_image(photos / "a.png", 9)
    write_image(photos / "d.png", 10)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "4 of 4 images segmented" in (out := capsys.readouterr().out)
    assert "(2 of them earlier)" in out
    after = times(output)
    assert {name for name in after if after[name] != before.get(name)} == {"a", "d"}
    assert (read_labels(output / "labels" / "a.png") != old).any()


def test_images_keep_their_names(arguments, photos, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    before = times(tmp_path / "out")
    write_image(photos / "a.jpg", 4)
    write_image(photos / "b.jpg.png", 5)
    assert main(arguments) == 0
    assert "(3 of them earlier)" in capsys.readouterr().out
    after = times(tmp_path / "out")
    assert after.keys() - before.keys() == {"a.jpg", "b.jpg"}
    assert before.items() <= after.items()
    (photos / "a.png").unlink()
    write_image(photos / "b.jpg", 6)
    assert main([*arguments, "--overwrite"]) == 0
    assert times(tmp_path / "out").keys() - after.keys() == {"b.jpg-2"}


def test_no_marginals_of_an_earlier_image_stay(arguments, photos, tmp_path) -> None:
    assert main([*arguments, "--marginals"]) == 0
    write_image(photos / "a.png", 9)
    assert main(arguments) == 0
    kept = sorted(path.name for path in (tmp_path / "out" / "marginals").iterdir())
    assert kept == ["b.npz", "c.npz"]


def test_marginals_of_somebody_else_stay(arguments, tmp_path, capsys) -> None:
    own = tmp_path / "out" / "marginals" / "b.npz"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    assert main(arguments) == 2
    assert "marginals/b.npz exists" in capsys.readouterr().err
    assert own.read_bytes() == b"mine"


def test_results_of_other_settings_are_refused(arguments, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    before = times(tmp_path / "out")
    for options, message in (
        (["--row", "unary-3scales"], "row was 1unary+2pair, is unary-3scales"),
        (["--scales", "[0.5]"], "scales was [1.0], is [0.5]"),
        (["--alpha", "0.3"], "alpha was 0.55, is 0.3"),
        (["--dense-crf", "--dense-crf-iterations", "2"], "row was 1unary+2pair, is full"),
    ):
        assert main([*arguments, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--overwrite" in error
        assert times(tmp_path / "out") == before
    assert main([*arguments, "--row", "unary-3scales", "--overwrite"]) == 0
    assert main([*arguments, "--row", "unary-3scales"]) == 0
    assert "(3 of them earlier)" in capsys.readouterr().out


def test_results_of_another_dense_crf_are_refused(arguments, capsys) -> None:
    arguments += ["--dense-crf", "--dense-crf-iterations"]
    assert main([*arguments, "1"]) == 0
    assert main([*arguments, "0"]) == 2
    error = capsys.readouterr().err
    assert "dense_crf was {" in error
    assert "'iterations': 1}, is {" in error
    assert main([*arguments, "1"]) == 0


def test_results_of_another_checkpoint_are_refused(arguments, run, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    copy = shutil.copytree(run, tmp_path / "copy")
    arguments[arguments.index(str(run))] = str(copy)
    assert main(arguments) == 0  # the same one
    state = load_checkpoint(copy / "last.pt")
    save_checkpoint(copy / "last.pt", {**state, "step": state["step"] + 1})  # trained on
    assert main(arguments) == 2
    assert "checkpoint was" in capsys.readouterr().err


def test_another_image_of_the_same_name_is_no_earlier_one(arguments, tmp_path, capsys) -> None:
    assert main(arguments) == 0
    before = times(tmp_path / "out")
    arguments[0] = str(write_image(tmp_path / "others" / "a.png", 12))
    assert main(arguments) == 2
    assert "photos/a.png, exists" in capsys.readouterr().err
    assert times(tmp_path / "out") == before


def test_a_stopped_run_that_overwrites_goes_on_too(arguments, tmp_path, monkeypatch) -> None:
    assert main(arguments) == 0
    output = tmp_path / "out"
    before, calls = times(output), []

    def stopping(file, *rest) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_labels(file, *rest)

    write_labels = predict.write_labels
    with monkeypatch.context() as patch:
        patch.setattr(predict, "write_labels", stopping)
        assert main([*arguments, "--alpha", "0.3", "--overwrite"]) == 130
    first = times(output)
    assert first["a"] != before["a"]
    assert main([*arguments, "--alpha", "0.3"]) == 0
    after = times(output)
    assert after["a"] == first["a"]
    assert after["b"] != before["b"]
    assert after["c"] != before["c"]


@pytest.mark.parametrize("stem", ["x" * 251, "é" * 125])
def test_names_as_long_as_there_are(run, tmp_path, stem) -> None:
    image = write_image(tmp_path / "photos" / f"{stem}.png", 0)
    output = tmp_path / "out"
    assert main([str(image), "--checkpoint", str(run), "--output", str(output), "--marginals"]) == 0
    for folder, suffix in (("labels", "png"), ("overlays", "png"), ("marginals", "npz")):
        assert [path.name for path in (output / folder).iterdir()] == [f"{stem}.{suffix}"]


def test_results_of_earlier_runs_are_no_images(run, arguments, photos, tmp_path, capsys) -> None:
    """Neither beside photographs, where the legend lies, nor in sub-folders of a folder of them."""
    inside = [str(photos), "--checkpoint", str(run), "--output"]
    assert main([*inside, str(photos)]) == 0
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("3 of 3 images") == 2
    above = [str(tmp_path), "--checkpoint", str(run), "--output", str(tmp_path / "all")]
    assert main(above) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    assert main([str(tmp_path / "out"), *above[1:-1], str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'out'}: no images in this folder")
    assert "results of earlier runs" in error
    assert main([str(tmp_path / "out" / "overlays"), *above[1:-1], str(tmp_path / "again")]) == 0


def test_a_link_that_leads_to_itself_is_one_image_less(arguments, photos, capsys) -> None:
    (photos / "loop.png").symlink_to(photos / "loop.png")
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.err.strip() == f"error: {photos / 'loop.png'}: no such file"
    assert "3 of 4 images" in told.out
