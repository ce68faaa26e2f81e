"""Several processes on one machine that find each other as those of `torchrun` do.

They are forks of a server that has imported the package, and so start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["deepcrf_ext.train", "deepcrf_ext.evaluate", "torch._dynamo", "matplotlib.pyplot"]
)
TIMEOUT = 240  # seconds


def run_processes(
    target: Callable[..., int], arguments: Sequence[Any], output: Path, size: int = 2
) -> list[int]:
    """Runs target(rank, *arguments) in `size` processes; returns their exit codes.

    What a process prints goes to output/RANK.txt. All are ended after `TIMEOUT`.
    """
    output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_run, args=(target, arguments, output, rank, size, port))
        for rank in range(size)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [code for process in processes if (code := process.exitcode) is not None]


def _run(
    target: Callable[..., int],
    arguments: Sequence[Any],
    output: Path,
    rank: int,
    size: int,
    port: int,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with (output / f"{rank}.txt").open("w") as file:
        sys.stdout = sys.stderr = file
        torch.set_num_threads(1)
        code = target(rank, *arguments)
        file.flush()
    os._exit(code)
