"""Without the extra `train`: the layers and operators work, a command ends in one plain line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepcrf_ext
from deepcrf_ext.libraries import EXTRA, MissingLibraryError, require

ROOT = Path(deepcrf_ext.__file__).parents[1]
COMMANDS = sorted(
    path.stem
    for path in (ROOT / "deepcrf_ext").glob("*.py")
    if '__name__ == "__main__"' in path.read_text() and path.stem not in ("__main__", "env")
)

# A finder that meets imports first. A broken module is there, but does not load.
BLOCKER = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ["MISSING"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == os.environ["BROKEN"]:
            raise ImportError("libGL.so.1: cannot open shared object file")
sys.meta_path.insert(0, Blocker())
"""


def run(
    folder: Path, *arguments: str, missing: str = "", broken: str = ""
) -> subprocess.CompletedProcess[str]:
    """Python in a process that cannot import some modules."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    variables = {"MISSING": missing, "BROKEN": broken, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_layers_and_operators_need_torch_and_numpy_alone(tmp_path: Path) -> None:
    modules = ["deepcrf_ext", "deepcrf_ext.nn", "deepcrf_ext.pydensecrf", "deepcrf_ext.models"]
    result = run(tmp_path, "-c", f"import {', '.join(modules)}", missing=" ".join(EXTRA))
    assert result.returncode == 0, result.stderr


def test_a_missing_library_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "-m", "deepcrf_ext.train", "--help", missing="jsonargparse")
    line = "error: python -m deepcrf_ext.train: jsonargparse is not installed: "
    assert result.stderr == f"{line}pip install 'deepcrf_ext[train]'\n"
    assert result.returncode == 2


def test_opencv_without_its_libraries_is_one_line_and_help_works(tmp_path: Path) -> None:
    script = f"""
import importlib, os
for name in {COMMANDS}:
    command = importlib.import_module(f"deepcrf_ext.{{name}}")
    try:
        command.main(["--help"])
    except SystemExit as end:
        assert end.code in (0, None), name
from deepcrf_ext import train
assert train.main(["--output", {str(tmp_path / "run")!r}]) == 2
"""
    result = run(tmp_path, "-c", script, broken="cv2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") >= len(COMMANDS)
    reason = "libGL.so.1: cannot open shared object file"
    advice = "pip install --force-reinstall 'opencv-python-headless'"
    assert result.stderr == f"error: cv2 cannot be loaded ({reason}): {advice}\n"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_libraries_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "jsonargparse.py").write_text("raise KeyboardInterrupt")
    result = run(tmp_path, "-m", "deepcrf_ext.train", "--help")
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    result = run(tmp_path, "-m", "deepcrf_ext.train", missing="shlex")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "No module named 'shlex'" in result.stderr


def test_other_programs_keep_their_errors(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import deepcrf_ext, jsonargparse")
    result = run(tmp_path, "-m", "program", missing="jsonargparse")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_require_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingLibraryError, match=r"scipy is not installed: pip install"):
        require("scipy")


def test_the_extra_is_that_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    extra = text[text.index("\ntrain = [") :].partition("\n]")[0]
    assert set(EXTRA.values()) == {
        re.match(r"[\w-]+(\[\w+\])?", requirement).group()
        for requirement in re.findall(r'"(.+?)"', extra)
    }


@pytest.mark.parametrize("command", ["refine", "explain", "reproduce"])
def test_a_home_that_cannot_be_written_to_is_nobodys_concern(tmp_path: Path, command: str) -> None:
    """As of a service, or in a container: matplotlib then keeps its fonts elsewhere."""
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, "-m", f"deepcrf_ext.{command}", "--help"],
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path / "file" / "x"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert result.stderr == ""
