"""pydensecrf itself, where it is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def theirs() -> Any:
    """All names of pydensecrf."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    utils = pytest.importorskip("pydensecrf.utils")
    eigen = pytest.importorskip("pydensecrf.eigen")
    return SimpleNamespace(**{**vars(utils), **vars(eigen), **vars(densecrf)})
