"""Builds the extension module deepcrf_ext._C with CMake and Ninja. Never imports torch.

Environment variables:
  CXX                       the C++ compiler, with flags or a launcher before it if need be
  CUDACXX                   the nvcc to use; else that of CUDA_HOME, CUDA_PATH, PATH or
                            /usr/local/cuda, the first that is new enough
  CUDAHOSTCXX               the C++ compiler that nvcc calls; CXX where unset
  DEEPCRF_CUDA              auto (default): CUDA where nvcc is found; on: nvcc is required;
                            off: CPU only
  CMAKE_CUDA_ARCHITECTURES  CUDA architectures as CMake writes them, e.g. "80-real;90"
  TORCH_CUDA_ARCH_LIST      the same as torch writes them, e.g. "8.0 9.0+PTX"; used where
                            CMAKE_CUDA_ARCHITECTURES is unset; those below 8.0 are left out
  CMAKE_ARGS                further arguments of the CMake configuration
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_MAJOR = 8  # of the kernels: bfloat16 matrix products, asynchronous copies


def cuda_architectures() -> str:
    """CMAKE_CUDA_ARCHITECTURES as the environment asks for it; empty for the default."""
    if os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
        return os.environ["CMAKE_CUDA_ARCHITECTURES"]
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    architectures = []
    for name in re.split(r"[\s;,]+", asked):
        if not name:
            continue
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must hold names like '8.0' or '9.0+PTX', got '{name}'"
            )
        major, minor, ptx = match.groups()
        if int(major) < OLDEST_MAJOR:
            print(f"deepcrf_ext: leaving out CUDA architecture {name}, which is below 8.0")
            continue
        architectures.append(f"{major}{minor}" if ptx else f"{major}{minor}-real")
    if asked and not architectures:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST must hold one from 8.0 on, got '{asked}'")
    return ";".join(architectures)


def find_tool(name: str) -> str:
    """The path of a build tool: from PATH, else from this environment's own scripts."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"deepcrf_ext: {name} was not found; 'pip install {name}' brings it")
    return found


def compilers() -> list[str]:
    """The compilers as the environment names them, as arguments of CMake."""
    cxx = shlex.split(os.environ.get("CXX", ""))
    cuda_host = os.environ.get("CUDAHOSTCXX") or (cxx[0] if len(cxx) == 1 else "")
    named = {"CMAKE_CXX_COMPILER": ";".join(cxx), "CMAKE_CUDA_HOST_COMPILER": cuda_host}
    return [f"-D{name}={value}" for name, value in named.items() if value]


def fingerprint(build: Path) -> str:
    """All that CMake looks at in the first configuration of a folder, and never again."""
    names = [
        *("CXX", "CXXFLAGS", "LDFLAGS", "CPATH", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS"),
        *("CUDA_HOME", "CUDA_PATH", "CMAKE_ARGS", "CMAKE_CXX_COMPILER_LAUNCHER"),
        *("CMAKE_CUDA_COMPILER_LAUNCHER", "CMAKE_BUILD_TYPE", "CMAKE_PREFIX_PATH"),
    ]
    environment = {name: os.environ.get(name, "") for name in names}
    cxx = shlex.split(environment["CXX"]) or ["c++"]
    commands = [cxx, [environment["CUDAHOSTCXX"] or "g++"], [environment["CUDACXX"] or "nvcc"]]
    homes = [environment["CUDA_HOME"], environment["CUDA_PATH"], "/usr/local/cuda"]
    commands += [[str(Path(home) / "bin" / "nvcc")] for home in homes if home]
    versions = []
    for command in commands:
        found = shutil.which(command[0])
        if found is not None:
            done = subprocess.run([*command, "--version"], capture_output=True, text=True)
            versions.append([found, os.path.realpath(found), done.stdout])
    facts = [str(ROOT), str(build), sys.version, environment, versions]
    return json.dumps(facts, indent=1)


class CMakeBuild(build_ext):
    """Builds in build/cmake-<platform>, which stays there for the next, incremental build.

    It starts afresh when a compiler, its version, another setting or the checkout's place changed.
    """

    def build_extension(self, ext: Extension) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        stamp, facts = build / "fingerprint.json", fingerprint(build)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != facts:
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir(parents=True)
            stamp.write_text(facts, encoding="utf-8")
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDEEPCRF_CUDA={os.environ.get('DEEPCRF_CUDA') or 'auto'}",
            f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures()}",
            *compilers(),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        for command in (configure, [cmake, "--build", str(build)]):
            if subprocess.run(command).returncode != 0:
                step = "configure" if command is configure else "build"
                raise SystemExit(f"deepcrf_ext: could not {step}; CMake's messages stand above")
        built = build / "module" / Path(self.get_ext_filename(ext.name)).name
        self.mkpath(str(Path(self.get_ext_fullpath(ext.name)).parent))
        self.copy_file(str(built), self.get_ext_fullpath(ext.name))


class FreshBuild(build_py):
    """Leaves out of a wheel what an earlier build left in build/lib and the checkout lost since."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("deepcrf_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuild},
)
