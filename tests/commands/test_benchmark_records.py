"""The records of benchmarks/results: what made them can be looked up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def commits(record: Any, key: str = "") -> Iterator[str]:
    """Every commit that a record names, as "commit" or in "commits"."""
    if isinstance(record, dict):
        for name, value in record.items():
            yield from commits(value, key if key == "commits" else name)
    elif isinstance(record, list):
        for value in record:
            yield from commits(value)
    elif key in ("commit", "commits"):
        yield record


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def history() -> list[str]:
    """All commits up to the one that is checked out."""
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no checkout with its history")
    return git("rev-list", "HEAD").split()


def test_commits_of_records_are_in_the_history(history: list[str]) -> None:
    """So none was made of files that nobody has, as of a commit that was rebased."""
    named = {
        (path.name, commit)
        for path in RECORDS
        for commit in commits(json.loads(path.read_text(encoding="utf-8")))
    }
    unknown = sorted(
        f"{name}: {commit}"
        for name, commit in named
        if not any(known.startswith(commit) for known in history)
    )
    if len(unknown) == len(named):
        pytest.skip("a checkout with a history of its own")
    assert not unknown
