"""What imports what: never upward, commands never one another, and only what is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tiny_run import write_run

import deepcrf_ext
from deepcrf_ext.libraries import EXTRA

PACKAGE = Path(deepcrf_ext.__file__).parent
ANYWHERE = {"errors", "constants", "libraries", "progress", "settings_files", "whole_files"}
"""What every part may import."""

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "constants": set(),
    "libraries": set(),
    "progress": set(),
    "settings_files": set(),
    "whole_files": set(),
    "ops": set(),
    "reference": {"ops"},
    "nn": {"ops"},
    "pydensecrf": {"ops"},
    "config": {"nn"},
    "parallel": set(),
    "models": {"ops", "nn", "config", "parallel"},
    "deepcrf_ext": {"ops", "reference", "nn", "models"},
    "data": {"config"},
    "records": {"ops", "config", "models", "deepcrf_ext"},
    "evaluation": {"ops", "nn", "config", "parallel", "models", "data", "records"},
    "pictures": {"data", "evaluation"},
    "explanation": {"ops", "nn", "parallel", "models", "data", "evaluation", "pictures"},
    "training": {
        *("ops", "nn", "config", "parallel", "models", "data", "records"),
        *("evaluation", "pictures"),
    },
    "paper": {
        *("ops", "nn", "config", "parallel", "models", "data", "records"),
        *("evaluation", "pictures", "explanation", "training"),
    },
    "cli": {"ops", "config", "models", "data", "evaluation"},
}
"""What each part may import beside `ANYWHERE`; `deepcrf_ext` is the public face, __init__.py.

Modules at the root that are not here, and every __main__.py, are commands: nobody imports them, and
they import what they like.
"""

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def part_of(module: str) -> str:
    """The part of the package that a module is of; a command is one of its own."""
    pieces = module.split(".")
    if pieces[-1] == "__main__":
        return module
    return pieces[min(1, len(pieces) - 1)]


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "deepcrf_ext")


def test_the_parts_stand_in_an_order() -> None:
    assert all(known in ALLOWED for parts in ALLOWED.values() for known in parts)
    order = list(TopologicalSorter(ALLOWED).static_order())  # raises CycleError
    main = [order.index(part) for part in ("ops", "nn", "models", "evaluation", "paper")]
    assert main == sorted(main)


@pytest.mark.parametrize("module", MODULES)
def test_an_import_never_goes_up(module: str) -> None:
    own = part_of(module)
    for imported in imports(MODULES[module]):
        other = part_of(imported)
        if other == own:
            continue
        assert other in ALLOWED, f"{module} imports the command {imported}"
        if own in ALLOWED:
            assert other in ALLOWED[own] | ANYWHERE, f"{module} imports {imported}"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_package_says_what_is_in_it(part: str) -> None:
    name = "deepcrf_ext" if part == "deepcrf_ext" else f"deepcrf_ext.{part}"
    text = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert text
    assert text.partition("\n\n")[0].rstrip().endswith((".", ":"))


def loaded(codes: Sequence[str], *arguments: str) -> list[set[str]]:
    """Modules, by the first part of their names, that are there after each of some pieces of code.

    Beside those of Python itself, of torch and NumPy and what they load, and of this package.
    """
    program = (
        "import sys, torch, numpy\n"
        "before = set(sys.modules)\n"
        "def show():\n"
        "    new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "    new -= {'_remote_module_non_scriptable'}  # which torch.distributed writes\n"
        "    print(*(new - sys.stdlib_module_names - {'deepcrf_ext', 'torch', 'numpy'}))\n"
    ) + "".join(f"{code}\nshow()\n" for code in codes)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_layers_and_models_load_torch_and_numpy_alone() -> None:
    codes = [
        "import deepcrf_ext",
        "import deepcrf_ext.nn",
        "import deepcrf_ext.pydensecrf",
        "from deepcrf_ext.models import DeepCRF; from deepcrf_ext.config import preset\n"
        "DeepCRF(preset('small').model, 3)",
    ]
    assert loaded(codes) == [set()] * len(codes)


def test_a_checkpoint_is_loaded_without_the_libraries_of_the_commands(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "camvid")
    code = "from deepcrf_ext.records.checkpoint import load_model; load_model(sys.argv[1])"
    assert loaded([code], str(run))[0].isdisjoint(EXTRA)


def test_earlier_names_still_lead_there() -> None:
    code = (
        "import deepcrf_ext.densecrf, deepcrf_ext.pydensecrf\n"
        "assert deepcrf_ext.densecrf is deepcrf_ext.pydensecrf\n"
        "from deepcrf_ext.densecrf import DenseCRF2D, unary_from_softmax\n"
        "assert DenseCRF2D is deepcrf_ext.pydensecrf.DenseCRF2D\n"
        "from deepcrf_ext.checkpoint import load_model\n"
        "import deepcrf_ext.predict, deepcrf_ext.evaluation.prediction as prediction\n"
        "assert deepcrf_ext.predict.predict_image is prediction.predict_image\n"
        "import deepcrf_ext.records.checkpoint as checkpoint\n"
        "assert load_model is checkpoint.load_model\n"
    )
    assert "jsonargparse" in loaded([code])[0]
