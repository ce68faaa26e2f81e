"""Which commit made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deepcrf_ext.records import provenance


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "package" / "provenance.py"
    file.parent.mkdir()
    file.write_text("first")
    monkeypatch.setattr(provenance, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.package_commit() is None, "there is no repository"

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    assert provenance.package_commit() is None, "a package that is installed inside a repository"
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert provenance.package_commit() == commit
    file.write_text("second")
    assert provenance.package_commit() == f"{commit}-dirty"
