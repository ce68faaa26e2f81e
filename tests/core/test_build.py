"""The build: its settings, its choice of instruction set, and what an import needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

from deepcrf_ext.ops import _backend

ROOT = Path(__file__).resolve().parents[2]
TOOLS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])

EDGES_CHECK = """
import torch
from deepcrf_ext.ops.range_box_edges import range_box_edges
from deepcrf_ext.reference.range_box_edges import range_box_edges as reference
for arguments in [(9, 40, -3, 2, -30, 25), (7, 33, 1, 4, -2, 2), (5, 6, 3, 9, -9, -1)]:
    for actual, expected in zip(
        range_box_edges(*arguments, torch.device("cpu")),
        reference(*arguments, torch.device("cpu")),
        strict=True,
    ):
        assert torch.equal(actual, expected), arguments
"""

IMPORT_CHECK = """
import sys
for name in ("cv2", "PIL", "scipy", "tqdm", "matplotlib", "tensorboard", "torchmetrics",
             "jsonargparse", "yaml"):
    sys.modules[name] = None
import deepcrf_ext
"""


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", _backend.native().supported_cpu_isas())
def test_every_instruction_set_makes_the_same_edges(isa: str) -> None:
    check = EDGES_CHECK + f"from deepcrf_ext import _C; assert _C.cpu_isa() == {isa!r}"
    result = run_python(check, DEEPCRF_CPU_ISA=isa)
    assert result.returncode == 0, result.stderr


def test_unknown_instruction_set_is_an_error() -> None:
    result = run_python(EDGES_CHECK, DEEPCRF_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "ValueError: DEEPCRF_CPU_ISA must be one that" in result.stderr
    assert "(portable" in result.stderr
    assert "got 'sse9'" in result.stderr


def test_import_needs_torch_and_numpy_alone() -> None:
    result = run_python(IMPORT_CHECK)
    assert result.returncode == 0, result.stderr


def configure(folder: Path, cuda: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A CMake configuration that finds no nvcc but that of further environment variables."""
    folders = [*TOOLS.split(os.pathsep), "/usr/local/cuda/bin"]
    hidden = [folder for folder in folders if (Path(folder) / "nvcc").exists()]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CUDA")}
    return subprocess.run(
        [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-Wno-dev"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_IGNORE_PATH={';'.join(hidden)}",
            f"-DDEEPCRF_CUDA={cuda}",
        ],
        env={**variables, "PATH": TOOLS, **more},
        capture_output=True,
        text=True,
    )


def words(text: str) -> str:
    """`text` without CMake's line breaks."""
    return " ".join(text.split())


def test_required_cuda_without_nvcc_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "on")
    assert result.returncode != 0
    assert "DEEPCRF_CUDA=on, but there is no nvcc" in words(result.stderr)


def test_build_without_nvcc_says_that_it_is_cpu_only(tmp_path: Path) -> None:
    result = configure(tmp_path, "auto")
    assert result.returncode == 0, result.stderr
    assert "nvcc was not found, so this build is CPU ONLY" in words(result.stderr)


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("auto", "is of CUDA 11.5, older than 12.0, so this build is CPU ONLY"),
        ("on", "is of CUDA 11.5; 12.0 is needed"),
    ],
)
def test_old_nvcc(tmp_path: Path, cuda: str, message: str) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.5, V11.5.119'\n")
    nvcc.chmod(0o755)
    result = configure(tmp_path / "build", cuda, CUDACXX=str(nvcc))
    assert (result.returncode == 0) == (cuda == "auto"), result.stderr
    assert message in words(result.stderr)


def test_unknown_cuda_setting_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "maybe")
    assert result.returncode != 0
    assert "DEEPCRF_CUDA must be auto, on or off, got 'maybe'" in words(result.stderr)


def cmake_arguments(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What setup.py passes to CMake, by a stand-in that prints its arguments and fails."""
    stand_in = folder / "cmake"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 1\n')
    stand_in.chmod(0o755)
    kept = {
        key: value for key, value in os.environ.items() if "CUDA" not in key and key != "CMAKE_ARGS"
    }
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "deepcrf_ext").mkdir()
    shutil.copy(ROOT / "deepcrf_ext" / "__init__.py", folder / "deepcrf_ext")
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        cwd=folder,
        env={**kept, "PATH": f"{folder}{os.pathsep}{TOOLS}", **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({}, ["-DDEEPCRF_CUDA=auto", "-DCMAKE_CUDA_ARCHITECTURES="]),
        ({"DEEPCRF_CUDA": "off"}, ["-DDEEPCRF_CUDA=off"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}, ["-DCMAKE_CUDA_ARCHITECTURES=80-real;90"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.6 9.0a"}, ["-DCMAKE_CUDA_ARCHITECTURES=86-real;90a-real"]),
        # As container images set it.
        (
            {"TORCH_CUDA_ARCH_LIST": "7.5 8.0 9.0 12.0+PTX"},
            ["-DCMAKE_CUDA_ARCHITECTURES=80-real;90-real;120"],
        ),
        (
            {"TORCH_CUDA_ARCH_LIST": "8.6", "CMAKE_CUDA_ARCHITECTURES": "90"},
            ["-DCMAKE_CUDA_ARCHITECTURES=90"],
        ),
        ({"CMAKE_ARGS": "-DA=1 '-DB=2 3'"}, ["-DA=1", "-DB=2 3"]),
    ],
)
def test_environment_reaches_cmake(
    tmp_path: Path, variables: dict[str, str], arguments: list[str]
) -> None:
    result = cmake_arguments(tmp_path, **variables)
    assert result.returncode != 0
    assert "its messages stand above" in result.stderr
    assert set(arguments) <= set(result.stdout.splitlines())


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        ("8.0 Hopper", "must hold names like '8.0' or '9.0+PTX', got 'Hopper'"),
        ("7.0;7.5+PTX", "must hold one from 8.0 on, got '7.0;7.5+PTX'"),
    ],
)
def test_architectures_that_cannot_be_built_are_an_error(
    tmp_path: Path, architectures: str, message: str
) -> None:
    result = cmake_arguments(tmp_path, TORCH_CUDA_ARCH_LIST=architectures)
    assert message in result.stderr
