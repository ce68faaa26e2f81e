"""The predict command: labels of the image's size for any image, and inputs that stay whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepcrf_ext.data import read_image, read_labels
from deepcrf_ext.evaluation.predicted_folder import find_images, output_names
from deepcrf_ext.evaluation.prediction import predict_image, upsample_labels
from deepcrf_ext.evaluation.views import Views
from deepcrf_ext.nn.grid_graphs import graph_bytes
from deepcrf_ext.predict import main
from deepcrf_ext.records.checkpoint import load_checkpoint, load_model, save_checkpoint


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of several kinds and sizes, two of one stem, and a file that is no image."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 52, 4), dtype=np.uint8)
    Image.fromarray(image[..., :3]).save(folder / "a.jpg")
    Image.fromarray(image[..., 0]).save(folder / "a.png")
    Image.fromarray(image).save(folder / "rgba.PNG")
    Image.fromarray(image[:1, :1, :3]).save(folder / "dot.png")
    Image.fromarray(np.repeat(image[:3, :, :3], 100, axis=1)).save(folder / "wide.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_pictures_of_further_formats_are_taken_from_folders(run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    picture = Image.fromarray(np.full((24, 32, 3), 90, np.uint8))
    for name in ("a.gif", "b.jp2"):
        picture.save(folder / name)
    assert [path.name for path in find_images([folder])] == ["a.gif", "b.jp2"]
    arguments = ["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--memory", "0.5"]
    assert main([str(folder), *arguments]) == 0
    assert read_labels(tmp_path / "out" / "labels" / "b.png").shape == (24, 32)


def test_command_says_where_the_networks_see_less(run, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(picture)
    arguments = [str(picture), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    arguments.append("--marginals")

    def grid() -> tuple[int, ...]:
        return np.load(tmp_path / "out" / "marginals" / "a.npz")["marginals"].shape[1:]

    assert main([*arguments, "--memory", "0.0001"]) == 0
    assert "instead of 160 pixels a side" in capsys.readouterr().err
    assert read_labels(tmp_path / "out" / "labels" / "a.png").shape == (120, 160)
    fitting = grid()
    assert main([*arguments, "--overwrite"]) == 0
    assert "instead" not in capsys.readouterr().err
    assert all(small < whole for small, whole in zip(fitting, grid(), strict=True))


def test_what_the_networks_see_is_bounded_where_scales_or_windows_are_given(run, tmp_path, capsys):
    """Graphs grow with the fourth power of the scale; those of windows do not with the image."""
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((120, 160, 3), 90, np.uint8)).save(picture)
    model, _, _ = load_model(run)
    grid = model.grid_size(120, 160)
    boxes = [relation.box(*grid) for relation in model.config.relations.values()]
    needed = sum(graph_bytes(box, 1, *grid) for box in boxes)
    arguments = [str(picture), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    arguments += ["--overwrite", "--memory"]
    for options, told in (
        ([str(2e-9 * needed)], False),
        ([str(2e-9 * needed), "--scales", "[1.0,1.5]"], True),
        ([str(5e-10 * needed)], True),
        ([str(5e-10 * needed), "--window", "60", "--max-size", "160"], False),
    ):
        assert main([*arguments, *options]) == 0
        assert ("instead of 160 pixels a side" in capsys.readouterr().err) == told


def test_networks_compute_as_in_training(run, pictures, tmp_path):
    state = load_checkpoint(run / "last.pt")
    state["config"]["amp"] = True
    save_checkpoint(tmp_path / "mixed.pt", state)
    picture = pictures / "a.png"
    arguments = ["--checkpoint", str(tmp_path / "mixed.pt"), "--output", str(tmp_path / "out")]
    assert main([str(picture), *arguments, "--marginals"]) == 0
    found = np.load(tmp_path / "out" / "marginals" / "a.npz")["marginals"]
    model, _, _ = load_model(run)
    mixed, plain = (
        predict_image(model, read_image(picture), "1unary+2pair", 640, amp).marginals
        for amp in (True, False)
    )
    np.testing.assert_array_equal(found, mixed)
    assert (found != plain).any()


def test_an_image_too_large_to_be_seen_whole_is_left_out(run, tmp_path, capsys, monkeypatch):
    for name, side in (("large", 90), ("small", 20)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr("deepcrf_ext.nn.grid_graphs.available_memory", lambda _: 100_000)
    arguments = [str(tmp_path), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--max-size", "null"]) == 1
    assert f"error: {tmp_path / 'large.png'}: an image of 90x90 pixels" in capsys.readouterr().err
    assert (tmp_path / "out/labels/small.png").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_networks_without_memory_leave_out_the_image(run, tmp_path, capsys, monkeypatch, error):
    model, _, _ = load_model(run)
    inputs = type(model).inputs

    def hungry(self, images, names=None):
        if images.shape[2] > 50:
            raise error
        return inputs(self, images, names)

    monkeypatch.setattr(type(model), "inputs", hungry)
    for name, side in (("large", 90), ("small", 20)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
    arguments = [str(tmp_path), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "large.png: an image of 90x90 pixels is too large" in capsys.readouterr().err
    assert (tmp_path / "out/labels/small.png").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_flip_and_scales_of_the_command(run, pictures, tmp_path):
    picture = pictures / "a.png"
    arguments = [str(picture), "--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--flip", "--scales", "[0.5,1.0]", "--marginals"]) == 0
    model, config, _ = load_model(run)
    views = Views((0.5, 1.0), True)
    row = model.default_variant()
    expected = predict_image(model, read_image(picture), row, 640, config.amp, views=views)
    found = np.load(tmp_path / "out" / "marginals" / "a.npz")["marginals"]
    np.testing.assert_array_equal(found, expected.marginals)


def test_dense_crf_option_is_the_row_full(run, pictures, tmp_path):
    params = ["--dense-crf-params", "{bilateral_srgb: 50}", "--dense-crf-iterations", "2"]
    wide = [str(pictures / "wide.png"), "--checkpoint", str(run)]
    outputs = {}
    for name, options in {
        "option": ["--dense-crf", *params],
        "row": ["--row", "full", *params],
        "plain": [],
    }.items():
        assert main([*wide, "--output", str(tmp_path / name), *options]) == 0
        outputs[name] = files_of(tmp_path / name)
    assert outputs["option"] == outputs["row"] != outputs["plain"]


def test_folder_of_every_kind_of_image(run, pictures, tmp_path, capsys):
    before, output = files_of(pictures), tmp_path / "out"
    code = main([str(pictures), "--checkpoint", str(run), "--output", str(output), "--marginals"])
    assert code == 0
    assert files_of(pictures) == before
    assert "5 of 5 images" in capsys.readouterr().out
    names = {"a.jpg": "a.jpg", "a.png": "a.png", "rgba": "rgba.PNG", "dot": "dot.png"}
    names["wide"] = "wide.png"
    assert {p.name for p in (output / "labels").iterdir()} == {f"{name}.png" for name in names}
    _, _, metadata = load_model(run)
    for name, source in names.items():
        image = read_image(pictures / source)
        labels = read_labels(output / "labels" / f"{name}.png")
        assert labels.shape == image.shape[:2]
        with Image.open(output / "labels" / f"{name}.png") as written:
            assert written.mode == "P"
            assert written.getpalette()[:33] == np.ravel(metadata["palette"]).tolist()
        assert read_image(output / "overlays" / f"{name}.png").shape == image.shape
        saved = np.load(output / "marginals" / f"{name}.npz")
        np.testing.assert_allclose(saved["marginals"].sum(0), 1, atol=1e-5)
        assert saved["size"].tolist() == list(image.shape[:2])
        assert saved["classes"].tolist() == metadata["classes"]
        again = upsample_labels(torch.from_numpy(saved["marginals"]), tuple(saved["size"]))
        np.testing.assert_array_equal(labels, again)
    assert cv2.imread(str(output / "legend.png")) is not None


def test_unreadable_images_are_named_and_left_out(run, pictures, tmp_path, capsys):
    (pictures / "empty.jpg").touch()
    (pictures / "broken.png").write_bytes((pictures / "rgba.PNG").read_bytes()[:200])
    common = ["--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main([str(pictures), *common]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "error: " in line]
    assert len(errors) == 2
    assert any(str(pictures / "empty.jpg") in line for line in errors)
    assert any(str(pictures / "broken.png") in line for line in errors)
    assert "5 of 7 images" in printed.out
    written = {p.name for p in (tmp_path / "out" / "labels").iterdir()}
    assert len(written) == 5
    assert not written & {"empty.png", "broken.png"}
    assert main([str(pictures / "empty.jpg"), *common]) == 2
    alone = capsys.readouterr().err.strip()
    assert alone.startswith("error: ")
    assert "\n" not in alone


def test_results_replace_nothing_unasked_and_inputs_never(run, pictures, tmp_path, capsys):
    output = tmp_path / "out"
    dot = [str(pictures / "dot.png"), "--checkpoint", str(run), "--output", str(output)]
    (output / "labels").mkdir(parents=True)
    (output / "labels" / "dot.png").write_bytes(b"of somebody else")
    assert main(dot) == 2
    assert "labels/dot.png exists" in capsys.readouterr().err
    assert (output / "labels" / "dot.png").read_bytes() == b"of somebody else"
    assert main([*dot, "--overwrite"]) == 0
    before = files_of(output)
    further = [str(pictures / "a.png"), *dot[1:]]
    assert main(further) == 0
    (output / "legend.png").write_bytes((pictures / "wide.png").read_bytes())
    further[0] = str(pictures / "wide.png")
    assert main(further) == 2
    assert "legend.png is of other classes" in capsys.readouterr().err
    (output / "legend.png").write_bytes(b"")
    assert main(further) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output: {output / 'legend.png'} is of other classes, or no")
    assert "--overwrite" in error
    assert main([*further, "--overwrite"]) == 0
    assert files_of(output)["legend.png"] == before["legend.png"]

    labels = tmp_path / "trap" / "labels"
    labels.mkdir(parents=True)
    (labels / "x.png").write_bytes((pictures / "a.png").read_bytes())
    arguments = [str(labels), "--checkpoint", str(run), "--output", str(tmp_path / "trap")]
    before = files_of(tmp_path / "trap")
    assert main([*arguments, "--overwrite"]) == 2
    assert "x.png is an input" in capsys.readouterr().err
    legend = tmp_path / "trap" / "legend.png"
    legend.write_bytes((pictures / "a.png").read_bytes())
    arguments[0] = str(legend)
    assert main([*arguments, "--overwrite"]) == 2
    assert "legend.png is an input" in capsys.readouterr().err
    assert files_of(tmp_path / "trap") == {**before, "legend.png": legend.read_bytes()}
    assert legend.read_bytes() == (pictures / "a.png").read_bytes()


def test_find_images_takes_each_file_once(pictures):
    (pictures / "folder.png").mkdir()
    found = find_images([pictures / "dot.png", pictures, pictures / ".." / "pictures" / "a.jpg"])
    assert [p.name for p in found] == ["dot.png", "a.jpg", "a.png", "rgba.PNG", "wide.png"]


def test_a_folder_of_folders(run, pictures, tmp_path, capsys):
    """Names, folders and all, are those of the images; earlier results are no images."""
    root = tmp_path / "series"
    for name in ("été 1", "deep/b"):
        (root / name).mkdir(parents=True)
        (root / name / "a.jpg").write_bytes((pictures / "a.jpg").read_bytes())
        (root / name / "dot.png").write_bytes((pictures / "dot.png").read_bytes())
    arguments = [str(root), "--checkpoint", str(run), "--output", str(root / "out"), "--marginals"]
    for more in ([], ["--overwrite"]):
        assert main([*arguments, *more]) == 0
        assert "4 of 4 images" in capsys.readouterr().out
    for folder, suffix in (("labels", "png"), ("overlays", "png"), ("marginals", "npz")):
        found = sorted(
            p.relative_to(root / "out" / folder) for p in (root / "out" / folder).rglob("*.*")
        )
        names = ("deep/b/a", "deep/b/dot", "été 1/a", "été 1/dot")
        assert found == [Path(f"{name}.{suffix}") for name in names]
    # Sub-folders do not matter where a folder holds images.
    assert list(find_images([root / "deep" / "b"]).values()) == [".", "."]
    (root / "one.png").write_bytes((pictures / "dot.png").read_bytes())
    assert [path.name for path in find_images([root])] == ["one.png"]


def test_results_beside_their_images(run, pictures, tmp_path, capsys):
    """The output may be the folder of the images, or one above it: results are no images."""
    root = tmp_path / "series"
    (root / "images" / "deep").mkdir(parents=True)
    (root / "images" / "deep" / "dot.png").write_bytes((pictures / "dot.png").read_bytes())
    for inputs, output in ((root / "images", root), (root, root), (pictures, pictures)):
        arguments = [str(inputs), "--checkpoint", str(run), "--output", str(output)]
        for _ in range(2):
            assert main([*arguments, "--overwrite"]) == 0
        count = 5 if inputs == pictures else 1
        assert capsys.readouterr().out.count(f"{count} of {count} images") == 2
    assert (root / "labels" / "images" / "deep" / "dot.png").exists()


def test_hidden_files_are_no_images_and_links_to_one_file_are_several(pictures, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "._a.png").write_bytes(b"what macOS keeps of a file")
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to(pictures / "dot.png")
    assert [path.name for path in find_images([folder, folder / "a.png"])] == ["a.png", "b.png"]


NAME = st.sampled_from(["a.jpg", "a.png", "A.png", "a.jpg.png", "b.png", "a.png-2.png", "a.jpg-2"])


@given(st.lists(st.tuples(st.sampled_from("xyz"), NAME), unique=True, max_size=12))
def test_output_names_are_distinct_and_plain_where_they_can_be(files):
    images = [Path(folder) / name for folder, name in files]
    names = output_names(images)
    assert len({name.casefold() for name in names}) == len(images)
    stems = [path.stem.casefold() for path in images]
    for path, name in zip(images, names, strict=True):
        if stems.count(path.stem.casefold()) == 1:
            assert name == path.stem
        else:
            assert name.startswith(path.name)


@given(st.lists(st.tuples(st.sampled_from("xyz"), NAME), unique=True, max_size=12), st.integers(0))
def test_names_stay_when_there_are_more_images(files, earlier):
    images = [Path(folder) / name for folder, name in files]
    first = images[: earlier % (len(images) + 1)]
    kept = dict(zip(first, output_names(first), strict=True))
    names = output_names(images, kept)
    assert names[: len(first)] == list(kept.values())
    assert len({name.casefold() for name in names}) == len(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["EMPTY"], "no images in this folder"),
        (["PICTURES", "--row", "full-ish"], "row: got 'full-ish', must be one of"),
        (["PICTURES", "--max-size", "0"], "max_size"),
        (["PICTURES", "--alpha", "1.5"], "alpha"),
        (["PICTURES", "--device", "tpu"], "'tpu'"),
        (["PICTURES", "--dense-crf-iterations", "5"], "goes with --dense-crf"),
        (["PICTURES", "--dense-crf", "--dense-crf-params", "EMPTY"], "neither a file nor one of"),
        (["PICTURES", "--dense-crf", "--dense-crf-params", "{weight: 3}"], "'weight' is unknown"),
        (["PICTURES", "--checkpoint", "EMPTY"], "checkpoint"),
        (["PICTURES", "--output", "FILE"], "FILE"),
        ([], "inputs"),
    ],
)
def test_bad_arguments_end_in_one_line(run, pictures, tmp_path, capsys, arguments, message):
    places = {"EMPTY": tmp_path / "empty", "PICTURES": pictures, "FILE": tmp_path / "FILE"}
    places["EMPTY"].mkdir()
    places["FILE"].write_text("in the way")
    given = [str(places.get(argument, argument)) for argument in arguments]
    common = ["--checkpoint", str(run), "--output", str(tmp_path / "out")]
    assert main([*common, *given]) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert message in errors
    assert "\n" not in errors


def test_help_explains_the_outputs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "labels/NAME.png" in capsys.readouterr().out
