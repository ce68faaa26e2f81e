"""The report: one HTML file with its tables, plots and pictures in it, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deepcrf_ext.paper import examples, plots
from deepcrf_ext.pictures.scores import confusion_plot
from deepcrf_ext.records.run_folder import read_metrics
from deepcrf_ext.whole_files import write_text


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes figures/*.svg and report.html from a reproduction's results; returns the report.

    results: what `deepcrf_ext.reproduce` writes as results.json. folder: where it does; it holds
    the pictures and the run folder. Raises OSError for a file that cannot be read or written.
    """
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    for path, draw in _plots(results, folder).items():
        plots.write_svg(figures / path, draw)

    def svg(name: str, title: str) -> Markup:
        return Markup(plots.inline_svg((figures / name).read_text(encoding="utf-8"), title))

    def picture(path: str) -> str:
        kind = "jpeg" if path.endswith(".jpg") else "png"
        data = base64.b64encode((folder / path).read_bytes()).decode()
        return f"data:image/{kind};base64,{data}"

    environment = Environment(
        loader=PackageLoader("deepcrf_ext.paper", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, milliseconds=_milliseconds)
    page = environment.get_template("report.html.j2").render(
        results,
        svg=svg,
        picture=picture,
        kinds=examples.KINDS,
        colours={"corrected": examples.CORRECTED, "spoilt": examples.SPOILT},
        config=yaml.safe_dump(results["plan"], sort_keys=False),
        steps=_steps(results),
    )
    report = folder / "report.html"
    write_text(report, page)
    return report


def _plots(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """File name -> a function that draws the plot at a path."""
    classes = results["classes"]
    drawings = {"curves.svg": partial(plots.curves_plot, read_metrics(folder / "train"))}
    for split, measured in results["splits"].items():
        rows = measured["rows"]
        after_baseline = list(rows)[list(rows).index(measured["baseline"]) + 1 :]
        gains = {
            name: np.array([np.nan if v is None else v for v in rows[name]["gains"].values()])
            for name in after_baseline
        }
        drawings[f"gains-{split}.svg"] = partial(plots.gains_plot, gains, classes)
        confusions = {
            name: np.array(rows[name]["result"]["scores"]["confusion"])
            for name in dict.fromkeys((measured["baseline"], measured["final"]))
        }
        drawings[f"confusion-{split}.svg"] = partial(confusion_plot, confusions, classes)
    return drawings


def _steps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of all finished steps."""
    records = [results["training"]]
    for measured in results["splits"].values():
        records += [*measured["rows"].values(), measured["examples"]]
    return records


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    """A difference in points, with its sign; a proper minus."""
    if value is None:
        return "–"
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"
