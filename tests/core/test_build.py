"""The build and its settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

from deepcrf_ext.ops import _backend

ROOT = Path(__file__).resolve().parents[2]
TOOLS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])

SIGNATURES = {
    1: "37cf02b533e481d2",
    2: "731af1f6529764ff",
    3: "731af1f6529764ff",
    4: "491efb8084303620",
}
"""The digest of what the extension's functions take, for each `INTERFACE`."""


def test_an_extension_of_other_sources_is_to_be_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("deepcrf_ext._C")
    monkeypatch.setitem(sys.modules, "deepcrf_ext._C", other)
    for interface in (None, _backend.INTERFACE - 1, _backend.INTERFACE + 1):
        if interface is not None:
            other.interface = interface  # type: ignore[attr-defined]
        other.__file__ = "old/_C.so"
        with pytest.raises(
            ImportError, match=r"old/_C.so was built from other.*; rebuild"
        ) as error:
            _backend.native.__wrapped__()
        assert "\n" not in str(error.value)


def test_other_signatures_have_another_interface() -> None:
    """Where this fails, raise `INTERFACE` in ops/_backend.py and `kInterface` in
    csrc/bindings/module.cpp, and put the digest here beside it."""
    native = _backend.native()
    names = sorted(name for name in dir(native) if callable(getattr(native, name)))
    signatures = [
        [name, *re.findall(r"(\w+):", getattr(native, name).__doc__ or "")] for name in names
    ]
    digest = sha256(repr(signatures).encode()).hexdigest()[:16]
    assert {native.interface: digest} == {_backend.INTERFACE: SIGNATURES[_backend.INTERFACE]}


def configure(folder: Path, cuda: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A CMake configuration that finds no nvcc but that of further environment variables."""
    folders = [*TOOLS.split(os.pathsep), "/usr/local/cuda/bin"]
    hidden = [folder for folder in folders if (Path(folder) / "nvcc").exists()]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CUDA")}
    return subprocess.run(
        [
            *("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
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


@pytest.mark.slow
def test_build_without_nvcc_says_that_it_is_cpu_only(tmp_path: Path) -> None:
    result = configure(tmp_path, "auto")
    assert result.returncode == 0, result.stderr
    assert (
        "there is no nvcc in CUDA_HOME, PATH or /usr/local/cuda, so this build is CPU ONLY"
        in words(result.stderr)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("auto", "is of CUDA 11.5, older than 12.0, so this build is CPU ONLY"),
        ("on", "is of CUDA 11.5, older than 12.0. Set CUDACXX to an nvcc of CUDA 12.0 or newer"),
    ],
)
def test_old_nvcc(tmp_path: Path, cuda: str, message: str) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.5, V11.5.119'\n")
    nvcc.chmod(0o755)
    result = configure(tmp_path / "build", cuda, CUDACXX=str(nvcc))
    assert (result.returncode == 0) == (cuda == "auto"), result.stderr
    assert message in words(result.stderr)


@pytest.mark.slow
def test_unknown_cuda_setting_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "maybe")
    assert result.returncode != 0
    assert "DEEPCRF_CUDA must be auto, on or off, got 'maybe'" in words(result.stderr)


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def set_up(folder: Path, cmake: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` in a folder, with a shell script in the place of CMake."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "deepcrf_ext").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deepcrf_ext" / "__init__.py", folder / "deepcrf_ext")
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    executable(tools / "cmake", cmake)
    names = ("CUDA", "CMAKE", "CXX", "LDFLAGS")
    kept = {
        key: value for key, value in os.environ.items() if not any(name in key for name in names)
    }
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext"],
        cwd=folder,
        env={**kept, "PATH": f"{tools}{os.pathsep}{TOOLS}", **variables},
        capture_output=True,
        text=True,
    )


def cmake_arguments(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What setup.py passes to CMake, by a stand-in that prints its arguments and fails."""
    return set_up(folder, 'printf "%s\\n" "$@"; exit 1', **variables)


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
        (
            {"CXX": "g++"},
            ["-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_CUDA_HOST_COMPILER=g++"],
        ),
        (
            {"CXX": "ccache g++ -m64", "CUDAHOSTCXX": "g++"},
            ["-DCMAKE_CXX_COMPILER=ccache;g++;-m64", "-DCMAKE_CUDA_HOST_COMPILER=g++"],
        ),
    ],
)
def test_environment_reaches_cmake(
    tmp_path: Path, variables: dict[str, str], arguments: list[str]
) -> None:
    result = cmake_arguments(tmp_path, **variables)
    assert result.returncode != 0
    assert "messages stand above" in result.stderr
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


REMEMBERS = """
while [ "$1" != -B ]; do shift; done
test -e "$2/former" && echo "goes on" || echo "starts afresh"
touch "$2/former"
exit 1
"""


def outcomes(folder: Path, *settings: dict[str, str]) -> list[str]:
    """What a CMake that looks for its former files says in builds with each of the settings."""
    return [set_up(folder, REMEMBERS, **variables).stdout.strip() for variables in settings]


@pytest.mark.parametrize("name", ["CXX", "CUDACXX", "CUDAHOSTCXX"])
def test_another_compiler_starts_afresh(tmp_path: Path, name: str) -> None:
    compilers = [str(executable(tmp_path / version, f"echo {version}")) for version in ("11", "12")]
    settings = [{name: compiler} for compiler in compilers]
    asked = [settings[0], settings[0], settings[1], settings[1], {}]
    afresh, again = "starts afresh", "goes on"
    assert outcomes(tmp_path, *asked) == [afresh, again, afresh, again, afresh]


@pytest.mark.parametrize("name", ["CXX", "CUDACXX"])
def test_another_version_of_a_compiler_starts_afresh(tmp_path: Path, name: str) -> None:
    compiler = executable(tmp_path / "compiler", "echo 11")
    setting = {name: str(compiler)}
    assert outcomes(tmp_path, setting, setting) == ["starts afresh", "goes on"]
    executable(compiler, "echo 12")
    assert outcomes(tmp_path, setting, setting) == ["starts afresh", "goes on"]


@pytest.mark.parametrize("name", ["CUDA_HOME", "PATH"])
def test_a_toolkit_that_appears_starts_afresh(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "toolkit" / "bin"
    folder.mkdir(parents=True)
    place = {"CUDA_HOME": str(folder.parent), "PATH": f"{tmp_path}/tools:{folder}:{TOOLS}"}
    setting = {name: place[name]}
    assert outcomes(tmp_path, setting, setting) == ["starts afresh", "goes on"]
    executable(folder / "nvcc", "echo 12")
    assert outcomes(tmp_path, setting, setting) == ["starts afresh", "goes on"]


def test_settings_that_cmake_keeps_start_afresh(tmp_path: Path) -> None:
    asked = [{}, {"CMAKE_ARGS": "-DA=1"}, {}, {"CXXFLAGS": "-g"}, {"LDFLAGS": "-s"}]
    assert outcomes(tmp_path, *asked) == ["starts afresh"] * 5


def test_a_copied_checkout_starts_afresh(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    assert outcomes(original, {}, {}) == ["starts afresh", "goes on"]
    shutil.copytree(original, copy)
    assert outcomes(copy, {}, {}) == ["starts afresh", "goes on"]
    assert outcomes(original, {}) == ["goes on"]


def test_advice_on_an_old_nvcc_works_when_followed(tmp_path: Path) -> None:
    for name in ("CMakeLists.txt", "csrc"):
        (tmp_path / name).symlink_to(ROOT / name)
    old = executable(tmp_path / "nvcc", "echo Cuda compilation tools, release 11.8, V11.8.89")
    real = shutil.which("cmake", path=TOOLS)
    configures = f'[ "$1" != --build ] && exec {real} "$@"; exit 1'

    refused = set_up(tmp_path, configures, CUDACXX=str(old), DEEPCRF_CUDA="on")
    assert "could not configure" in refused.stderr
    (advice,) = [line for line in refused.stderr.splitlines() if "11.8" in line]
    assert f"{old} is of CUDA 11.8, older than 12.0. Set CUDACXX to an nvcc" in advice
    assert advice.endswith("or build for the CPU alone with DEEPCRF_CUDA=off.")

    without = set_up(tmp_path, configures, CUDACXX=str(old), DEEPCRF_CUDA="off")
    assert "could not build" in without.stderr, "it is configured; the stand-in builds nothing"

    nvcc = shutil.which("nvcc", path=f"{TOOLS}:/usr/local/cuda/bin")
    if nvcc is not None:
        newer = set_up(tmp_path, configures, CUDACXX=nvcc, DEEPCRF_CUDA="on")
        assert "could not build" in newer.stderr
        assert "CPU and CUDA" in newer.stdout


@pytest.mark.slow
def test_a_missing_nvcc_that_was_named_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "auto", CUDACXX="/not/here/nvcc")
    assert result.returncode != 0
    assert "CUDACXX: got '/not/here/nvcc', must be the path of an nvcc" in result.stderr


@pytest.mark.slow
def test_an_old_nvcc_does_not_hide_a_newer_one(tmp_path: Path) -> None:
    for version in ("11.8", "12.4"):
        (tmp_path / version / "bin").mkdir(parents=True)
        executable(tmp_path / version / "bin" / "nvcc", f"echo release {version}, V{version}.1")
    result = configure(
        tmp_path / "build",
        "on",
        CUDA_HOME=str(tmp_path / "11.8"),
        PATH=f"{tmp_path / '12.4' / 'bin'}:{TOOLS}",
    )
    assert f"CUDA by {tmp_path / '12.4' / 'bin' / 'nvcc'}" in result.stdout
