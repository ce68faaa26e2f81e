"""Builds test-only modules: the package's sources over an emulation of what runs them."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shlex
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

    With the environment variable DEEPCRF_SANITIZE=ON, with the sanitizers of `make sanitize`.

    What was built is kept under a digest of all that went into it, so that nothing runs, CMake
    neither, until some of that changes.

    Raises:
        RuntimeError: The build failed; the message ends with the compiler's.
    """
    sanitize = os.environ.get("DEEPCRF_SANITIZE") == "ON"
    folder = ROOT / "build" / (f"{source.name}_sanitized" if sanitize else source.name)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    path = folder / f"{name}-{_digest(source)}{suffix}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _build(source, folder, name, ["-DDEEPCRF_SANITIZE=ON"] if sanitize else [])
            for former in folder.glob(f"{name}-*{suffix}"):
                former.unlink()
            (folder / (name + suffix)).rename(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiler() -> str:
    return os.environ.get("CXX") or "g++"


def _digest(source: Path) -> str:
    """Of the sources, the place of the checkout, the compiler and pybind11."""
    version = subprocess.run(
        [*shlex.split(_compiler()), "--version"], capture_output=True, text=True
    ).stdout
    digest = hashlib.sha256(f"{ROOT} {version} {pybind11.__version__}".encode())
    for folder in (ROOT / "csrc", source):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                digest.update(str(path.relative_to(ROOT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(source: Path, folder: Path, target: str, settings: list[str]) -> None:
    cache = folder / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n" not in cache.read_text():
        cache.unlink()  # of a checkout that was copied
        shutil.rmtree(folder / "CMakeFiles", ignore_errors=True)
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    environment = {**os.environ, "CXX": _compiler(), "PATH": search}
    cmake = shutil.which("cmake", path=search) or "cmake"
    configure = [
        *(cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        *settings,
    ]
    for command in (configure, [cmake, "--build", str(folder), "--target", target]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            output = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
