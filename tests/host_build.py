"""Builds test-only modules: the package's sources over an emulation of what runs them."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[1]


def build_module(source: Path, name: str) -> ModuleType:
    """Build a target of the CMake project in the folder `source`, and import it.

    Raises:
        RuntimeError: The build failed; the message ends with the compiler's.
    """
    folder = ROOT / "build" / source.name
    _build(source, folder, name)
    path = folder / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(source: Path, folder: Path, target: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {"CXX": "g++", **os.environ, "PATH": search}
    cmake = shutil.which("cmake", path=search) or "cmake"
    configure = [
        *(cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", str(folder), "--target", target]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                output = (done.stdout + done.stderr)[-4000:]
                raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
