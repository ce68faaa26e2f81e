"""Versions, machine and compiled extension: what results and bug reports depend on."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

import deepcrf_ext
from deepcrf_ext.ops import _backend

_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scipy",
    "safetensors",
    "timm",
    "torchvision",
    "efficientnet_lite_pytorch",
)
"""What results may depend on beside torch, where it is installed."""


def _packages() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _cpu_model() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    info = Path("/proc/cpuinfo")
    match = (
        re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8"))
        if info.exists()
        else None
    )
    return match.group(1) if match else platform.machine()


def _loaded_openmp_runtimes() -> list[str]:
    """Paths of the OpenMP libraries in this process, as Linux lists them."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    text = os.fsdecode(maps.read_bytes())
    return sorted(set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)\b\S*\.so\S*", text)))


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(
            f"{index}: {properties.name}, compute capability "
            f"{properties.major}.{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    return "\n".join(lines)


def _extension_facts(native: ModuleType) -> dict[str, str]:
    """What the compiled extension says of itself."""
    cuda = native.cuda_build()
    try:
        isa = native.cpu_isa()
    except ValueError as error:
        isa = f"none: {error}"
    runtimes = _loaded_openmp_runtimes()
    in_use = native.openmp_runtime()
    others = [path for path in runtimes if not Path(path).samefile(in_use)]
    facts = {
        "extension": str(native.__file__),
        "compiler": native.compiler,
        "backends built": "CPU ONLY: nvcc was missing, or DEEPCRF_CUDA=off"
        if cuda is None
        else "cpu, cuda",
        "instruction set": f"{isa} (supported: {', '.join(native.supported_cpu_isas())})",
        "OpenMP in use": in_use,
        "OpenMP also loaded": "\n".join(others) or "none",
    }
    if cuda is not None:
        version = cuda["runtime_version"]
        facts["CUDA compiler"] = cuda["compiler"]
        facts["CUDA runtime"] = f"{version // 1000}.{version % 1000 // 10}, linked statically"
        facts["CUDA architectures"] = cuda["architectures"]
    return facts


def environment() -> tuple[dict[str, str], bool]:
    """Facts by name, and whether the compiled extension is there."""
    facts = {
        "deepcrf_ext": f"{deepcrf_ext.__version__} in {Path(deepcrf_ext.__file__).parent}",
        "Python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})",
        "packages": _packages(),
        "system": platform.platform(),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} logical cores",
        "GPUs": _gpus(),
        "threads": f"{torch.get_num_threads()} (torch.get_num_threads())",
        "float32 products": f"{_backend.float32_precision(torch.cuda.is_available())} precision "
        "(torch.get_float32_matmul_precision())",
    }
    try:
        native = _backend.native()
    except ImportError as error:
        facts["extension"] = f"MISSING: {error}"
        return facts, False
    facts.update(_extension_facts(native))
    return facts, True
