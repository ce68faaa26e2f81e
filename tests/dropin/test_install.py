"""The package under the names of pydensecrf, for scripts that stay as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import numpy as np
import pydensecrf
import pydensecrf.densecrf as dcrf
import pydensecrf.utils
from pydensecrf.utils import unary_from_softmax
from pydensecrf import utils, densecrf
from pydensecrf.eigen import matrixXf

crf = dcrf.DenseCRF2D(4, 3, 2)
crf.setUnaryEnergy(unary_from_softmax(np.full((2, 3, 4), 0.5, np.float32)))
crf.addPairwiseGaussian(sxy=3, compat=3)
assert densecrf is dcrf and utils is pydensecrf.utils
print(dcrf.__name__, np.array(crf.inference(2)).shape, sys.argv[1:], __name__)
"""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=folder
    )


def test_a_script_runs_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "helper.py").write_text("VALUE = 7\n")
    (folder / "script.py").write_text(SCRIPT + "from helper import VALUE\nprint(VALUE)\n")
    run = python("-m", "deepcrf_ext.pydensecrf", "scripts/script.py", "--own", "1", folder=tmp_path)
    wanted = "deepcrf_ext.pydensecrf.densecrf (2, 12) ['--own', '1'] __main__\n7\n"
    assert (run.returncode, run.stdout) == (0, wanted), run.stderr
    for arguments in (["missing.py"], ["--device", "cuda:99", "scripts/script.py"]):
        run = python("-m", "deepcrf_ext.pydensecrf", *arguments, folder=tmp_path)
        assert run.returncode == 2
        assert "Traceback" not in run.stderr


def test_a_module_runs_unchanged(tmp_path: Path) -> None:
    """As by `python -m`, relative imports and spawned processes included."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("import pydensecrf.densecrf as dcrf\n")
    (tmp_path / "tools" / "helper.py").write_text("from . import dcrf\nVALUE = dcrf.FULL_KERNEL\n")
    (tmp_path / "tools" / "refine.py").write_text(
        """
import multiprocessing, sys
import pydensecrf.densecrf as dcrf
from .helper import VALUE

def name(value):
    return dcrf.__name__, value

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(name, [VALUE])[0], sys.argv[1:])
"""
    )
    run = python("-m", "deepcrf_ext.pydensecrf", "-m", "tools.refine", "-m", "1", folder=tmp_path)
    wanted = "deepcrf_ext.pydensecrf.densecrf 2 ['-m', '1']\n"
    assert (run.returncode, run.stdout) == (0, wanted), run.stderr
    for missing in ("tools.missing", "missing.refine"):
        run = python("-m", "deepcrf_ext.pydensecrf", "-m", missing, folder=tmp_path)
        assert run.returncode == 2
        assert run.stderr.splitlines()[-1].endswith(f"error: {missing}: no such module")


@pytest.mark.parametrize(
    "arguments", [("-m", "deepcrf_ext.pydensecrf", "script.py"), ("program.py",)]
)
def test_processes_of_a_script_find_the_package_too(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "script.py").write_text(
        """
import multiprocessing, subprocess, sys
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels

def name(_):
    return dcrf.__name__, unary_from_labels.__module__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(name, [0])[0], flush=True)
    other = "from pydensecrf.densecrf import DenseCRF2D; print(DenseCRF2D.__module__)"
    subprocess.run([sys.executable, "-c", other])
"""
    )
    (tmp_path / "program.py").write_text(
        """
import runpy
if __name__ == "__main__":
    from deepcrf_ext.pydensecrf import install
    install(device="cpu")
    install()
    runpy.run_path("script.py", run_name="__main__")
"""
    )
    run = python(*arguments, folder=tmp_path)
    wanted = "deepcrf_ext.pydensecrf.densecrf deepcrf_ext.pydensecrf.utils\n"
    wanted += "deepcrf_ext.pydensecrf.densecrf\n"
    assert (run.returncode, run.stdout) == (0, wanted), run.stderr


def test_install(tmp_path: Path) -> None:
    """Before, again, and in a spawned process, whose pickles come from this one."""
    program = f"""
import multiprocessing, pickle
import deepcrf_ext.pydensecrf
deepcrf_ext.pydensecrf.install()
deepcrf_ext.pydensecrf.install(device="cpu")
{SCRIPT}
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(dcrf.NormalizationType, [3]))
"""
    (tmp_path / "program.py").write_text(program)
    run = python("program.py", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "NORMALIZE_SYMMETRIC" in run.stdout


def test_install_beside_pydensecrf(tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf.densecrf")
    program = """
import pydensecrf.densecrf as former
from deepcrf_ext.pydensecrf import install
try:
    install()
except RuntimeError as error:
    assert "is imported already" in str(error) and "replace=True" in str(error)
    assert "site-packages" in str(error) or "pydensecrf" in str(error)
else:
    raise SystemExit("installed over pydensecrf")
import pydensecrf.densecrf
assert pydensecrf.densecrf is former
install(replace=True)
import pydensecrf.densecrf
from pydensecrf.utils import unary_from_labels
assert pydensecrf.densecrf is not former
assert unary_from_labels.__module__ == "deepcrf_ext.pydensecrf.utils"
"""
    run = python("-c", program, folder=tmp_path)
    assert run.returncode == 0, run.stderr
