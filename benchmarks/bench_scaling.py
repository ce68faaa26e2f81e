"""How the CPU operators scale: time per edge against edges, labels, features and threads.

    python benchmarks/bench_scaling.py [--seconds 0.5]

One axis varies at a time: labels (at D = 128) and features (at K = 21) on 14x18 nodes, threads on
28x36 nodes at K = 21, D = 512. Against edges, the range box stays 5x5 and the grid grows (K = 11,
D = 128): with a box that grew along, nodes would have more edges to share their work. The time is
divided by what varies: edges, and K² or D. Flat lines, and half the time on two threads, are the
goal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import Case, make_problem, random_problem
from harness import Measurement, measure, result_path, run_command, write_results

import deepcrf_ext as dc

SIDES = (9, 26, 80, 210, 650)  # of square grids: about 10³ to 10⁷ edges
LABELS = (2, 3, 5, 8, 12, 21, 34, 60, 100, 150)
FEATURES = (64, 128, 256, 512, 1024)
UNITS = {"edges": "edge", "K": "edge and K²", "D": "edge and feature", "threads": "edge"}
SMALL, LARGE = Case(14, 18, 21), Case(28, 36, 21)


def steps(
    potential: dc.FactoredPotential, unary: torch.Tensor, labels: torch.Tensor
) -> dict[str, Callable[[], Any]]:
    """The operators on one problem whose tensors require gradients."""
    parameters = (potential.source, potential.target, potential.weight, potential.bias)

    def mean_field() -> None:
        with torch.no_grad():
            dc.mean_field(unary, [potential], 2)

    def messages_gradient() -> None:
        marginals = unary.softmax(1)
        torch.autograd.grad(dc.pairwise_messages(potential, marginals).sum(), parameters)

    def loss() -> None:
        torch.autograd.grad(dc.pairwise_nll(potential, labels), parameters)

    return {"mean field": mean_field, "messages + gradient": messages_gradient, "loss": loss}


def main(seconds: float = 0.5, axes: Sequence[str] = ("edges", "K", "D", "threads")) -> None:
    """Prints a table and writes the record and plot `scaling`.

    Args:
        seconds: time to repeat each measurement for.
        axes: what to vary: edges, K, D, threads.
    """
    device = torch.device("cpu")
    most_threads = torch.get_num_threads()
    points: list[dict[str, Any]] = []
    measurements: list[Measurement] = []

    def record(axis: str, value: int, problem: Any, work: float) -> None:
        for name, step in steps(*problem).items():
            result = measure(step, device, seconds)
            measurements.append(Measurement(f"{axis}={value}", name, **result))
            points.append(
                {
                    "axis": axis,
                    "value": value,
                    "operator": name,
                    "nanoseconds_per_unit": 1e9 * result["fastest"] / work,
                }
            )

    if "edges" in axes:
        for side in SIDES:
            graph = dc.EdgeGraph.from_range_box(side, side, dc.RangeBox(-2, 2, -2, 2))
            record("edges", graph.num_edges, random_problem(graph, 11, 128), graph.num_edges)
    if "K" in axes:
        for count in LABELS:
            case = Case(SMALL.height, SMALL.width, count, 128)
            work = case.num_edges() * count**2
            record("K", count, make_problem(case, device, requires_grad=True), work)
    if "D" in axes:
        for count in FEATURES:
            case = Case(SMALL.height, SMALL.width, SMALL.labels, count)
            work = case.num_edges() * count
            record("D", count, make_problem(case, device, requires_grad=True), work)
    if "threads" in axes:
        problem = make_problem(LARGE, device, requires_grad=True)
        for count in range(1, most_threads + 1):
            torch.set_num_threads(count)
            record("threads", count, problem, LARGE.num_edges())
        torch.set_num_threads(most_threads)

    print_points(points)
    print(write_results("scaling", device, measurements, points=points))
    print(plot(points))


def print_points(points: Sequence[dict[str, Any]]) -> None:
    """One line a value of an axis: nanoseconds a unit of every operator."""
    names = list(dict.fromkeys(point["operator"] for point in points))
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for point in points:
        row = rows.setdefault((point["axis"], point["value"]), {})
        row[point["operator"]] = point["nanoseconds_per_unit"]
    print(f"\n{'nanoseconds per':16} {'at':>20}" + "".join(f"{name:>22}" for name in names))
    for (axis, value), row in rows.items():
        times = "".join(f"{row[name]:22.4g}" for name in names)
        print(f"{UNITS[axis]:16} {f'{axis} = {value}':>20}{times}")


def plot(points: Sequence[dict[str, Any]]) -> str:
    """One panel an axis; returns the PNG's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes_names = list(dict.fromkeys(point["axis"] for point in points))
    figure, panels = plt.subplots(
        -(-len(axes_names) // 2), 2, figsize=(10, 7), constrained_layout=True, squeeze=False
    )
    for panel in panels.flat[len(axes_names) :]:
        panel.remove()
    for panel, axis in zip(panels.flat, axes_names, strict=False):
        for name in dict.fromkeys(point["operator"] for point in points):
            line = [p for p in points if p["axis"] == axis and p["operator"] == name]
            values = [p["value"] for p in line]
            panel.plot(values, [p["nanoseconds_per_unit"] for p in line], "o-", label=name)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"ns per {UNITS[axis]}")
        if axis != "edges":
            panel.set_xticks(values, map(str, values))
            panel.minorticks_off()
        low, high = panel.get_ylim()
        panel.set_ylim(low / 2, high * 2)  # a small change is to look small
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names))
    path = result_path("scaling", torch.device("cpu"), "png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


if __name__ == "__main__":
    run_command(main)
