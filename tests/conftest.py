"""Fixtures of several tests, and the settings of hypothesis for all."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from targets import OPERATOR_TARGETS, TARGETS, Target
from threads import torch_threads

if tuple(map(int, importlib.metadata.version("torch").split(".")[:2])) < (2, 10):
    # `fullgraph=True` did not yet imply it: see docs/python.md.
    os.environ["TORCHDYNAMO_CAPTURE_DYNAMIC_OUTPUT_SHAPE_OPS"] = "1"

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("few", settings.get_profile("fixed"), max_examples=8)  # `make test`
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Gives all processes of a run a folder that ends with it, for what killed ones leave behind
    and for caches: of the user's own, only what is not this package's is there, as ccache's."""
    if hasattr(config, "workerinput"):  # of pytest-xdist, which inherits the folder
        return
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tempfile.TemporaryDirectory(prefix="deepcrf_ext-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    cache = Path(folder.name, "cache")
    cache.mkdir()
    for path in own.iterdir() if own.is_dir() else ():
        if path.name != "deepcrf_ext":
            (cache / path.name).symlink_to(path)
    os.environ.update(
        TMPDIR=folder.name,
        XDG_CACHE_HOME=str(cache),
        TORCHINDUCTOR_CACHE_DIR=str(cache / "torchinductor"),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Marks as slow what the emulated kernels run beyond a slice of each test's parameters."""
    cases = defaultdict(list)
    for item in items:
        if "cuda_on_host" in _target_names(item):
            cases[item.nodeid.partition("[")[0]].append(item)
    for same_test in cases.values():
        kept = covering([_values(item) for item in same_test])
        for number, item in enumerate(same_test):
            if number not in kept:
                item.add_marker("slow")


def _target_names(item: pytest.Function) -> list[str]:
    values = item.callspec.params.values() if hasattr(item, "callspec") else []
    return [value.name for value in values if isinstance(value, Target)]


def _values(item: pytest.Function) -> dict[str, str]:
    return {name: repr(value) for name, value in item.callspec.params.items()}


def covering(cases: Sequence[dict[str, str]]) -> set[int]:
    """Numbers of a few cases that hold every pair of values of two parameters, chosen greedily.

    cases: of each, every parameter's value.
    """
    pairs = [set(combinations(sorted(case.items()), min(2, len(case)))) for case in cases]
    missing = set().union(*pairs)
    kept: set[int] = set()
    while missing:
        best = max(range(len(cases)), key=lambda number: len(pairs[number] & missing))
        kept.add(best)
        missing -= pairs[best]
    return kept


@contextmanager
def active(target: Target) -> Iterator[None]:
    """The target active, on one thread: the problems are too small to share."""
    with torch_threads(1), target.activate():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, object, object]:
    """Activate a test's target for that test alone: others of its module must not see it."""
    targets = [value for value in item.funcargs.values() if isinstance(value, Target)]
    with active(targets[0]) if targets else nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends a process whose GPU a kernel has put out of use: all further tests would fail for that.

    Of the processes of pytest-xdist another begins, and says that this test crashed its own.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if hasattr(item.config, "workerinput"):
            os._exit(1)
        pytest.exit(f"the GPU is out of use: {error}", returncode=1)


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    """Every implementation of the public functions in turn, active while its tests run."""
    return request.param


@pytest.fixture(scope="module", params=OPERATOR_TARGETS, ids=lambda target: target.name)
def operator_target(request: pytest.FixtureRequest) -> Target:
    """As `target`, without the plain PyTorch reference."""
    return request.param


@pytest.fixture(
    scope="module",
    params=[target for target in OPERATOR_TARGETS if target.name != "cuda_on_host"],
    ids=lambda target: target.name,
)
def real_target(request: pytest.FixtureRequest) -> Target:
    """As `operator_target`, without the emulated kernels: for what their emulation checks itself,
    or what is not in the kernels."""
    return request.param


@pytest.fixture(
    scope="module",
    params=[target for target in TARGETS if target.device.type == "cpu"],
    ids=lambda target: target.name,
)
def host_target(request: pytest.FixtureRequest) -> Target:
    """As `target`, on CPU tensors only: there label values are looked at before the work."""
    return request.param


@pytest.fixture(
    params=[target for target in OPERATOR_TARGETS if target.name != "cpu"],
    ids=lambda target: target.name,
)
def cuda_target(request: pytest.FixtureRequest) -> Target:
    """Every target that runs the CUDA kernels, active while its tests run."""
    return request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for the tests and the further fixtures of a module, whose models are tiny."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tiny untrained model, and its data in the folder camvid beside it."""
    from tiny_run import write_run  # which needs more than operators do

    folder: Path = tmp_path_factory.mktemp("run")
    return write_run(folder / "run", folder / "camvid")
