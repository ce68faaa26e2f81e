"""The lists of VOC in miniature, which several tests lay out in folders."""

from __future__ import annotations

from pathlib import Path

TRAIN, VAL, TEST = ["2007_000032", "2007_000129"], ["2007_000033", "2008_000002"], ["2010_000001"]


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
