"""Data-parallel training on many GPUs: arithmetic, and a simulation of its steps that checks it.

    python benchmarks/simulate_scaling.py                   # the table of docs/scaling.md
    python benchmarks/simulate_scaling.py --check_steps 5   # beside two real processes on two cores

Each process computes its images potential by potential; when all have the gradient of one, its
all-reduce starts while the next is computed; the optimiser waits for the last. Loader processes
make batches ahead. Times of single pieces of work vary at random, so that the slowest process of
every step is waited for.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import harness
import numpy as np
import torch
from harness import machine, run_command
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deepcrf_ext.config import TrainConfig, preset
from deepcrf_ext.data import open_dataset
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.potential_nets import PairwiseNet
from deepcrf_ext.parallel.batch_norm import BatchNorm
from deepcrf_ext.parallel.world import ALONE, World, join
from deepcrf_ext.training.loader import epoch_batches
from deepcrf_ext.training.trainer import Trainer

STEPS = 400  # of a simulation
PREFETCH = 2  # batches that a loader process has ready, torch's default


@dataclass(frozen=True)
class Potential:
    """One potential's work.

    operations: of an image, forward and backward.
    gradient_bytes: that are added up over all processes, once a step.
    exchanges: of batch normalisation, forward and backward, a step; each is waited for.
    """

    name: str
    operations: float
    gradient_bytes: float
    exchanges: int


@dataclass(frozen=True)
class Cluster:
    """What the processes run on.

    rate: operations a second that a process reaches on average.
    bandwidth: bytes a second of an all-reduce's bus, counting 2 (n - 1) / n bytes for each byte.
    latency: seconds of one hop of an all-reduce.
    update_bandwidth: bytes a second of memory that the optimiser's pass reaches.
    jitter: standard deviation of the logarithm of every time.
    load_seconds: time of a loader process for one image.
    loaders: loader processes for each training process.
    """

    name: str
    processes: int
    rate: float
    bandwidth: float
    latency: float = 15e-6
    update_bandwidth: float = 2e12
    jitter: float = 0.05
    load_seconds: float = 0.01
    loaders: int = 8

    def all_reduce(self, num_bytes: float = 0.0) -> float:
        """Seconds to add up so many bytes, or a few numbers, over all processes."""
        n = self.processes
        hops = 2 * min(n - 1, int(np.ceil(np.log2(n))))  # a tree where that is shorter
        return 2 * (n - 1) / n * num_bytes / self.bandwidth + hops * self.latency


@dataclass(frozen=True)
class Step:
    """Mean seconds of a step, and of its parts that are waited for."""

    total: float
    compute: float
    exposed: float  # all-reduce that no computation hides
    stragglers: float
    loading: float


def count_potentials(config: TrainConfig, num_classes: int) -> list[Potential]:
    """Every potential of a model, counted on its training crop."""
    assert config.data.crop is not None
    with torch.device("meta"):
        model = DeepCRF(config.model, num_classes)
    height, width = model.grid_size(*config.data.crop)
    potentials = []
    for potential, network in model.potentials.items():
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            pyramid = [torch.empty(1, 3, *size) for size in model.pyramid.sizes(*config.data.crop)]
            network.to_empty(device="cpu")
            if isinstance(network, PairwiseNet):
                features = network.features(pyramid)
                network.source(features), network.target(features)
            else:
                network(pyramid[:1] if potential == "unary_1scale" else pyramid)
        operations = 3.0 * counter.get_total_flops()
        if potential in config.model.relations:
            box = config.model.relations[potential].box(height, width)
            edges = height * width * (box.bottom - box.top + 1) * (box.right - box.left + 1)
            operations += 6.0 * edges * config.model.pairwise_hidden * num_classes**2
        size = sum(4 * parameter.numel() for parameter in network.parameters())
        exchanges = 2 * sum(isinstance(layer, BatchNorm) for layer in network.modules())
        potentials.append(Potential(potential, operations, size, exchanges))
    return potentials


def arithmetic(potentials: Sequence[Potential], cluster: Cluster, images: int) -> Step:
    """A step without any variation, `images` in each process: what can be reckoned by hand."""
    finished = sent = 0.0
    for potential in potentials:
        finished += images * potential.operations / cluster.rate
        finished += potential.exchanges * cluster.all_reduce()
        sent = max(sent, finished) + cluster.all_reduce(potential.gradient_bytes)
    update = 5 * sum(p.gradient_bytes for p in potentials) / cluster.update_bandwidth
    step = sent + update
    loading = images * cluster.load_seconds / cluster.loaders
    return Step(
        max(step, loading), finished + update, sent - finished, 0.0, max(0.0, loading - step)
    )


def simulate(potentials: Sequence[Potential], cluster: Cluster, images: int) -> Step:
    """The mean step of `STEPS`, every piece of work with its own random time."""
    random = np.random.default_rng(0)
    n, loaders = cluster.processes, cluster.loaders

    def vary(size: int | tuple[int, int]) -> np.ndarray:
        return random.lognormal(-(cluster.jitter**2) / 2, cluster.jitter, size)

    update = 5 * sum(p.gradient_bytes for p in potentials) / cluster.update_bandwidth
    loader_free = np.zeros((n, loaders))  # when each loader process can begin its next batch
    taken = np.zeros((n, loaders, PREFETCH))  # when its latest batches were taken from it
    now, loading, stragglers, exposed = 0.0, 0.0, 0.0, 0.0
    for step in range(STEPS + loaders * PREFETCH):
        if step == loaders * PREFETCH:  # the loaders' head start is over
            start, loading, stragglers, exposed = now, 0.0, 0.0, 0.0
        loader, slot = step % loaders, step // loaders % PREFETCH
        begin = np.maximum(loader_free[:, loader], taken[:, loader, slot])
        ready = begin + images * cluster.load_seconds * vary(n)
        loader_free[:, loader] = ready
        clock = np.maximum(now, ready)
        taken[:, loader, slot] = clock
        loading += float(clock.max() - now)
        sent = 0.0
        mean_clock = float(clock.max())
        clock[:] = mean_clock
        for potential in potentials:
            seconds = images * potential.operations / cluster.rate
            clock = clock + seconds * vary(n)
            mean_clock += seconds
            if potential.exchanges:  # after which all processes are level
                clock[:] = clock.max() + potential.exchanges * cluster.all_reduce()
                mean_clock += potential.exchanges * cluster.all_reduce()
            sent = max(sent, float(clock.max())) + cluster.all_reduce(potential.gradient_bytes)
        stragglers += float(clock.max()) - mean_clock
        exposed += sent - float(clock.max())
        now = sent + update
    total = (now - start) / STEPS
    waits = (exposed / STEPS, stragglers / STEPS, loading / STEPS)
    return Step(total, total - sum(waits), *waits)


def settings(images: int, load_seconds: float, rate: float) -> list[tuple[Cluster, int, int]]:
    """Assumed H100s at `rate`, NVLink within a machine of 8, a fast or a slow network between.

    With each, images of a process in a step, and into how many runs the potentials are divided.
    """
    one = Cluster("1 GPU", 1, rate, 300e9, load_seconds=load_seconds)
    fast = replace(one, name="64 GPUs, 8 x 400 Gb/s", processes=64, bandwidth=150e9)
    slow = replace(one, name="64 GPUs, 1 x 100 Gb/s", processes=64, bandwidth=10e9)
    quarter = replace(slow, name="... as 4 x 16, a potential each", processes=16)
    return [
        (one, images, 1),
        (replace(one, name="8 GPUs, NVLink", processes=8), images, 1),
        (fast, images, 1),
        (slow, images, 1),
        (replace(slow, name="... 4 times the images a step"), 4 * images, 1),
        (quarter, 4 * images, 4),
    ]


def run_table(images: int, epoch: int, load_seconds: float, rate: float) -> list[dict[str, Any]]:
    """Prints arithmetic beside simulation for preset paper; returns the rows."""
    paper = preset("paper")
    paper.model.potentials = "all"  # every row of the paper's table
    potentials = count_potentials(paper, 21)
    operations = sum(p.operations for p in potentials)
    gradient_bytes = sum(p.gradient_bytes for p in potentials)
    print(
        f"\npaper: {operations / 1e12:.3g} TFLOP an image, {gradient_bytes / 1e6:.4g} MB of "
        f"gradients; a GPU: {rate / 1e12:.0f} TFLOP/s; a loader: {load_seconds * 1e3:.1f} ms an "
        f"image\n{'':32} {'images':>6} {'by hand':>9} {'simulated':>9} {'all-reduce':>10} "
        f"{'slowest':>8} {'loading':>8} {'images/s':>9} {'per GPU':>8} {'epoch':>8}"
    )
    rows: list[dict[str, Any]] = []
    for cluster, count, runs in settings(images, load_seconds, rate):
        # Of runs side by side, the one that trains most decides.
        trained = potentials if runs == 1 else [max(potentials, key=lambda p: p.operations)]
        by_hand = arithmetic(trained, cluster, count)
        step = simulate(trained, cluster, count)
        speed = cluster.processes * count / step.total
        share = speed / (cluster.processes * runs)
        share /= 1 if not rows else rows[0]["images_per_second"]
        print(
            f"{cluster.name:32} {count * cluster.processes:6} {by_hand.total * 1e3:7.1f}ms "
            f"{step.total * 1e3:7.1f}ms {step.exposed * 1e3:8.1f}ms {step.stragglers * 1e3:6.1f}ms "
            f"{step.loading * 1e3:6.1f}ms {speed:9.0f} {1 if not rows else share:8.0%} "
            f"{epoch / speed / 60:5.1f}min"
        )
        rows.append(
            {
                "cluster": asdict(cluster),
                "images": count,
                "runs": runs,
                "by_hand": asdict(by_hand),
                "simulated": asdict(step),
                "images_per_second": speed,
            }
        )
    return rows


def step_times(config: TrainConfig, world: World, others: World, count: int) -> list[float]:
    """Seconds of training steps in `world`, begun at once in all `others`, after two before."""
    data = open_dataset("scenes", None, "train")
    trainer = Trainer(config, data, data, world=world)
    trainer.model.train()
    batch = next(epoch_batches(data, config, 0, 0, world))
    times = []
    for step in range(-2, count):
        if step == 0:
            others.any(True)
        begin = time.perf_counter()
        trainer.step(*batch)
        times.append(time.perf_counter() - begin)
    return times[2:]


def seconds_of_sum(world: World, values: Tensor, count: int) -> float:
    """Mean seconds to add up a tensor over all processes."""
    world.sum(values)
    begin = time.perf_counter()
    for _ in range(count):
        world.sum(values)
    return (time.perf_counter() - begin) / count


def small(batch_norm: bool) -> TrainConfig:
    """What the check trains."""
    config = preset("small")
    config.model.batch_norm = batch_norm
    config.model.potentials = "all"
    config.optim.lr = 1e-6  # a usual one diverges without batch norm
    return replace(config, warm_start=0.0, device="cpu")


def measure_steps(count: int) -> None:
    """One of two processes: prints seconds of steps apart and together, and of exchanges."""
    with join("cpu") as world:
        for batch_norm in (False, True):
            config = small(batch_norm)
            apart = step_times(replace(config, batch_size=4), ALONE, world, count)
            together = step_times(replace(config, batch_size=8), world, world, count)
            numbers = sum(p.gradient_bytes for p in count_potentials(config, 12)) // 4
            times = {
                "apart": statistics.mean(apart),
                "jitter": float(np.log(apart).std()),
                "together": statistics.mean(together),
                "all_reduce": seconds_of_sum(world, torch.zeros(int(numbers)), count),
                "exchange": seconds_of_sum(world, torch.zeros(3, 128, dtype=torch.float64), 100),
            }
            if world.is_main:
                print(json.dumps(times))


def check(count: int) -> list[dict[str, float]]:
    """Two real processes, a core each, beside the simulation of them; without and with batch norm.

    The simulation is given the times of their steps when they do not wait for each other, on both
    cores at once, and those of single exchanges.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [__file__, f"--worker={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    print(
        "two processes, 4 images each, preset small, ms a step\n"
        f"{'batch norm':10} {'apart':>7} {'all-reduce':>11} {'exchanges':>13} {'by hand':>8} "
        f"{'simulated':>10} {'measured':>9}"
    )
    rows = []
    for batch_norm, line in zip((False, True), done.stdout.splitlines()[-2:], strict=True):
        times: dict[str, float] = json.loads(line)
        potentials = count_potentials(small(batch_norm), 12)
        size = sum(p.gradient_bytes for p in potentials)
        cluster = Cluster(
            "2 processes",
            2,
            rate=4 * sum(p.operations for p in potentials) / times["apart"],
            bandwidth=size / times["all_reduce"],
            latency=times["exchange"] / 2,  # there and back
            update_bandwidth=float("inf"),  # part of the step that was measured
            jitter=times["jitter"],
            load_seconds=0.0,
        )
        by_hand, simulated = (f(potentials, cluster, 4).total for f in (arithmetic, simulate))
        exchanges = sum(p.exchanges for p in potentials)
        print(
            f"{'yes' if batch_norm else 'no':10} {times['apart'] * 1e3:7.0f} "
            f"{times['all_reduce'] * 1e3:11.1f} {exchanges:4} x {times['exchange'] * 1e3:6.2f} "
            f"{by_hand * 1e3:8.0f} {simulated * 1e3:10.0f} {times['together'] * 1e3:9.0f}"
        )
        rows.append({**times, "exchanges": exchanges, "by_hand": by_hand, "simulated": simulated})
    return rows


def main(
    images: int = 4,
    epoch: int = 1_000_000,
    load_seconds: float = 0.01,
    rate: float = 3e14,
    check_steps: int = 0,
    worker: int = 0,
) -> None:
    """Prints the table and writes the record `simulated-scaling`.

    Args:
        images: images of a GPU in a step.
        epoch: images of an epoch.
        load_seconds: time of one core for one image, of `bench_end_to_end.py`.
        rate: operations a second of one GPU, averaged over a step.
        check_steps: steps of a comparison with two real processes, which want a core each and
            nothing else on the machine; 0 leaves it out.
        worker: steps to measure as one of them.
    """
    if worker:
        measure_steps(worker)
        return
    record: dict[str, object] = {"machine": machine(torch.device("cpu"))}
    if check_steps:
        record["check"] = check(check_steps)
    record["table"] = run_table(images, epoch, load_seconds, rate)
    harness.RESULTS.mkdir(parents=True, exist_ok=True)
    path = harness.RESULTS / "simulated-scaling.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    run_command(main)
