"""The figures in the documents are those of the records in benchmarks/results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Times = dict[tuple[str, str], dict[str, Any]]
"""Measurements by case and contender."""


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def times(name: str) -> Times:
    return {(m["case"], m["contender"]): m for m in record(name)["measurements"]}


def tables(document: str, head: str) -> list[dict[str, list[str]]]:
    """The cells behind the first of each row, of every table whose head begins so."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = []
    for block in re.findall(rf"^\| ?{re.escape(head)} ?\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M):
        rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in block.splitlines()]
        found.append({row[0].replace("`", ""): row[1:] for row in rows})
    return found


def case_of(row: str) -> str:
    """The case of a benchmark that a row of docs/speed.md is of."""
    edges = {"5,124": "14x18", "100,740": "28x36", "1,837,308": "56x75"}
    grid = re.match(r"\d+×\d+", row)
    side = grid[0].replace("×", "x") if grid else edges[row.split()[0]]
    (labels,) = re.findall(r"K = (\d+)", row)
    return f"{side} K={labels} D=512 {'bfloat16' if 'bfloat16' in row else 'float32'}"


def duration(seconds: float) -> str:
    """A time with two digits: 2.2 ms, 24 ms, 0.33 s."""
    value, unit = (seconds, "s") if seconds >= 0.0995 else (seconds * 1000, "ms")
    return f"{value:#.2g} {unit}".replace(". ", " ")


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}"


SPEED = [
    ("mean field, 2 iterations", "meanfield-amd", "float32"),
    ("mean field, 2 iterations, forward and backward", "meanfield_gradient-amd", ""),
    ("pairwise loss, forward and backward", "pairwise_loss-amd", "float32 bfloat16"),
]
"""The tables of docs/speed.md, their records, and the dtypes whose share of the peak they give."""


def speed_row(name: str, case: str, peaks: str) -> Iterator[str]:
    """The cells behind the name of a row."""
    measured = times(name)
    ours, *others = (
        measured[case, who] for who in ("deepcrf_ext", "eager", "torch.compile", "chunked")
    )
    yield duration(ours["median"])
    if peaks:
        dtype = case.split()[-1]
        peak = record(name)["ceilings"][f"{dtype}_multiply_add_operations_per_second"]
        share = record(name)["operations"][case] / ours["median"] / peak
        yield f"{100 * share:.0f} %" if dtype in peaks else ""
    for other in others:
        yield other["left_out"] or f"{other['median'] / ours['median']:.1f}×"
    memory = f"{megabytes(ours['peak_bytes'])} MB"
    yield memory + (f", eager {megabytes(others[0]['peak_bytes'])}" if others[0]["median"] else "")


@pytest.mark.parametrize(("head", "name", "peaks"), SPEED)
def test_tables_of_speed(head: str, name: str, peaks: str) -> None:
    (rows,) = tables("docs/speed.md", head)
    for row, cells in rows.items():
        expected = list(speed_row(name, case_of(row), peaks))
        assert [cell.removesuffix(" as long") for cell in cells] == expected, row


def test_the_table_of_table_potentials() -> None:
    measured = times("tables-amd")
    (rows,) = tables("docs/speed.md", "table potentials")
    assert rows.keys() == {case for case, _ in measured}
    for case, cells in rows.items():
        ours, eager, compiled = (
            measured[case, who] for who in ("deepcrf_ext", "eager", "torch.compile")
        )
        assert [cell.removesuffix(" as long") for cell in cells] == [
            duration(ours["median"]),
            *(f"{other['median'] / ours['median']:.1f}×" for other in (eager, compiled)),
            f"{megabytes(ours['peak_bytes'])} MB, eager {megabytes(eager['peak_bytes'])}",
        ], case


def test_the_table_of_the_dense_crf() -> None:
    measured = times("densecrf-amd")
    (rows,) = tables("docs/results.md", "image, labels, iterations")
    for row, cells in rows.items():
        side, labels, iterations = row.replace("×", "x").split(", ")
        case = f"{side} K={labels} n={iterations}"
        whole, reused, theirs = (
            measured[case, who]
            for who in ("deepcrf_ext", "deepcrf_ext, lattices reused", "pydensecrf2")
        )
        assert cells == [
            *(f"{1000 * one['median']:.0f} ms" for one in (whole, reused, theirs)),
            f"{theirs['median'] / whole['median']:.1f}×",
            f"{megabytes(whole['peak_bytes'])} against {megabytes(theirs['peak_bytes'])} MB",
        ], row


WHOLE_STEPS = {
    "small, training step, 8 images of 96×128": ("small train B=8", 8),
    "small, prediction, 480×360": ("small predict B=1", 1),
    "paper, training step, one image, crop 450×600": ("paper train B=1", 1),
    "paper, prediction, 500×375": ("paper predict B=1", 1),
    "VGG-16 blocks 1-5, 450×600": ("paper blocks B=1", 1),
}


def test_the_table_of_whole_steps() -> None:
    measured = times("end_to_end-amd")
    (rows,) = tables("docs/speed.md", "")
    assert rows.keys() == WHOLE_STEPS.keys()
    for row, cells in rows.items():
        case, images = WHOLE_STEPS[row]
        ours, eager = (measured[case, who] for who in ("deepcrf_ext", "eager"))
        rates = [images / one["median"] for one in (ours, eager)]
        ratio = rates[0] / rates[1]
        assert [float(cell) for cell in cells[:2]] == pytest.approx(rates, rel=0.02), row
        assert cells[2:] == [
            f"{ratio:#.2g}×".replace(".×", "×"),
            f"{megabytes(ours['peak_bytes'])} MB, eager {megabytes(eager['peak_bytes'])} MB",
        ], row


def ratios(name: str, field: str, theirs: str, dtype: str) -> tuple[float, float]:
    """The smallest and the largest ratio of what another needs to what the package needs."""
    measured = times(name)
    found = [
        measured[case, theirs][field] / ours[field]
        for (case, who), ours in measured.items()
        if who == "deepcrf_ext" and dtype in case and measured[case, theirs][field]
    ]
    return min(found), max(found)


def test_speed_in_the_readme() -> None:
    """The ranges of a sentence, over the float32 cases."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for sentence, *source in (
        (
            "mean field is {:.0f} to {:.0f} times as fast as what",
            "meanfield-amd",
            "median",
            "eager",
        ),
        (", with 1/{:.0f} to 1/{:.0f} of the memory", "meanfield-amd", "peak_bytes", "eager"),
        ("with its gradient {:.0f} to {:.0f} times", "meanfield_gradient-amd", "median", "eager"),
        ("the pairwise loss {:.1f} to {:.1f} times", "pairwise_loss-amd", "median", "eager"),
    ):
        assert sentence.format(*ratios(*source, "float32")) in text
    fastest = ratios("densecrf-amd", "median", "pydensecrf2", "")
    assert "{:.0f} to {:.0f} times as fast as pydensecrf2".format(*fastest) in text


def scores(name: str, split: str, row: str) -> list[str]:
    """The four scores of a row of a CamVid table; "-" where they were not measured."""
    measured = record(name)["splits"][split]["rows"].get(row.replace("above/below", "above_below"))
    if measured is None:
        return ["-"] * 4
    percent = ("mean_iou", "pixel_accuracy", "mean_boundary_f1")
    return [
        *(f"{100 * measured['scores'][score]:.1f}" for score in percent),
        f"{measured['scores']['nll']:.2f}" if "nll" in measured["scores"] else "-",
    ]


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (
            "row | val mIoU | pixel acc. | boundary F1 | NLL | test mIoU",
            ("camvid-pretrained", "camvid-vgg", "camvid-scratch"),
        ),
        ("row | val mIoU | pixel acc. | boundary F1 | test mIoU", ("camvid-small",)),
    ],
)
def test_the_tables_of_camvid(head: str, names: tuple[str, ...]) -> None:
    for name, rows in zip(names, tables("docs/results.md", head), strict=True):
        for row, cells in rows.items():
            count = len(cells) // 2
            expected = [*scores(name, "val", row)[:count], *scores(name, "test", row)[:count]]
            assert cells == expected, (name, row)


GAINS = {
    "relations, gain": "1unary+2pair",
    "dense CRF alone, gain": "unary + dense CRF",
    "both, gain": "full",
}


def test_the_gains_of_camvids_classes() -> None:
    found = tables("docs/results.md", "test | sky | building | pole | road")
    for name, rows in zip(("camvid-pretrained", "camvid-scratch"), found, strict=True):
        measured = record(name)["splits"]["test"]["rows"]

        def percent(row: str) -> list[float]:
            return [100 * value for value in measured[row]["scores"]["iou"].values()]  # noqa: B023

        unary = percent("unary")
        assert rows.pop("unary, IoU") == [f"{value:.1f}" for value in unary]
        for row, cells in rows.items():
            after = percent(GAINS[row])
            assert cells == [f"{b - a:+.1f}" for a, b in zip(unary, after, strict=True)], row


SUMMARY = {
    "unary (a feature pyramid at stride 4; from random weights, 2)": ("unary", "unary"),
    "with both pairwise relations": ("1unary+2pair", "1unary+2pair, calibrated"),
    "with the dense CRF on top": ("full", "full, calibrated"),
    "the unary with the dense CRF alone": ("unary + dense CRF", "unary + dense CRF"),
    "the unary before the relations were trained": ("unary, before the relations",) * 2,
    "unary, mirrored and in three sizes": ("unary, several views",) * 2,
    "with both and on top, mirrored and in three sizes": (
        "full, several views",
        "full, calibrated, several views",
    ),
}
"""The rows of the table of the README, in the records of both starts."""


def test_camvid_in_the_readme() -> None:
    (rows,) = tables("README.md", "CamVid, mean IoU")
    assert rows.keys() == SUMMARY.keys()
    for row, cells in rows.items():
        assert cells == [
            scores(name, split, measured)[0]
            for name, measured in zip(
                ("camvid-pretrained", "camvid-scratch"), SUMMARY[row], strict=True
            )
            for split in ("val", "test")
        ], row


def test_the_table_of_scenes() -> None:
    seeds = list(record("scenes-small")["seeds"].values())

    def cells(state: str, row: str) -> Iterator[str]:
        for split in ("val", "test"):
            for score in ("mean_iou", "pixel_accuracy", "nll"):
                factor, digits = (1, 2) if score == "nll" else (100, 1)
                values = [factor * seed[state][split]["rows"][row][score] for seed in seeds]
                mean = sum(values) / len(values)
                yield f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"

    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    trained, calibrated = text.split("| *weights fitted by* `calibrate` |")
    for state, part in (("trained", trained), ("calibrated", calibrated)):
        for row in seeds[0][state]["val"]["rows"]:
            assert f"| `{row}` | {' | '.join(cells(state, row))} |" in part
