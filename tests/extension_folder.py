"""A pytest plugin: the tests use the extension in the folder DEEPCRF_EXTENSION_FOLDER.

`make sanitize` runs the operator tests over another build in this way.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import torch  # noqa: F401  its OpenMP runtime has to be loaded before the extension's

_NAME = "deepcrf_ext._C"
(_PATH,) = Path(os.environ["DEEPCRF_EXTENSION_FOLDER"]).glob("_C*.so")
_SPEC = importlib.util.spec_from_file_location(_NAME, _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _MODULE
_SPEC.loader.exec_module(_MODULE)
