"""Commands with a time limit each, some side by side, whose output goes to a log as they end."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TextIO, cast

ROOT = Path(__file__).resolve().parents[1]
LEAST = 5.0  # seconds; a part that has less is not begun
GRACE = 8.0  # seconds to stop in, after an interrupt
ANSWER = 20.0  # seconds that a program has to say what it is
TAIL = 15  # lines of a failed part's output that are shown
LOGGED = 800_000  # characters of a part's output that the log has at most, its begin and its end
SUMMARY = re.compile(r"\d+ (?:passed|failed|error|deselected).*|(?:ERROR|RACECHECK) SUMMARY.*")


@dataclass(frozen=True)
class Part:
    """A command with its time limit in seconds.

    tool: a program of CUDA's that runs the command, with its options. timed: the command takes
    --until, after which (a time of the monotonic clock) it begins nothing more. beside: it runs
    beside the part before it.
    """

    name: str
    limit: float
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    tool: Sequence[str] = ()
    timed: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "ok", "failed", "out of time" or why it was left out; and its summary."""

    part: str
    result: str
    seconds: float = 0.0
    summary: str = ""


def find_tool(name: str) -> str | None:
    """The path of a program of CUDA's: on PATH, beside nvcc, or where NVIDIA installs it."""
    nvcc = shutil.which("nvcc")
    beside = [] if nvcc is None else [Path(nvcc).resolve().parent]
    folders = [*beside, Path("/usr/local/cuda/bin"), *Path("/opt/nvidia").glob("nsight-compute/*")]
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    return shutil.which(name, path=search)


@cache
def answer(*command: str) -> str:
    """What a program prints; nothing where it is not there or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def together(every: Sequence[Part]) -> list[list[Part]]:
    """Parts that run at the same time, one group after another."""
    groups: list[list[Part]] = []
    for part in every:
        if part.beside:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


@dataclass
class Running:
    """A part that has begun, its output and when to interrupt it, both of the monotonic clock."""

    part: Part
    command: Sequence[str]
    process: subprocess.Popen[str]
    output: TextIO
    begin: float
    end: float
    interrupted: bool = False

    def has_ended(self) -> bool:
        """Whether it has; past its end it is interrupted, on which pytest still tells of failures,
        then killed, and given up where not even that ends it, as in a call of a driver that hangs.
        """
        late = time.monotonic() - self.end
        if self.process.poll() is not None or late > 2 * GRACE:
            return True
        if late > GRACE:
            self.stop(signal.SIGKILL)
        elif late > 0 and not self.interrupted:
            self.interrupted = True
            self.stop(signal.SIGINT)
        return False

    def stop(self, by: signal.Signals) -> None:
        """Sends a signal to its process and all that this began and that are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, by)

    def outcome(self, folder: Path) -> Outcome:
        """How it ended; its output goes to the log."""
        self.stop(signal.SIGKILL)  # what it left behind would hold the GPU
        self.output.seek(0)
        text = shortened(self.output.read())
        self.output.close()
        with (folder / "on_gpu.log").open("a", encoding="utf-8") as log:
            log.write(f"\n==== {self.part.name}: {' '.join(self.command)}\n{text}")
        result = "ok" if self.process.returncode == 0 else "failed"
        result = "out of time" if self.interrupted else result
        if result != "ok":
            print("\n".join(text.splitlines()[-TAIL:]), flush=True)
        found = SUMMARY.findall(text)
        seconds = time.monotonic() - self.begin
        return Outcome(self.part.name, result, seconds, found[-1] if found else "")


def shortened(text: str) -> str:
    """The text, without its middle where it is longer than the log may have."""
    half = LOGGED // 2
    if len(text) <= LOGGED:
        return text
    return f"{text[:half]}\n[{len(text) - LOGGED} characters left out]\n{text[-half:]}"


def start(part: Part, left: float, dry_run: bool) -> Running | Outcome:
    """Begins a part, for its limit at most, or for what is left of the budget; a dry run, whose
    machine may be slow, for that alone."""
    limit = min(math.inf if dry_run else part.limit, left - GRACE)
    if limit < LEAST:
        return Outcome(part.name, "left out: no time left")
    command = list(part.command)
    if part.tool and not dry_run:
        program = find_tool(part.tool[0])
        if program is None:
            return Outcome(part.name, f"left out: no {part.tool[0]} here")
        command = [program, *part.tool[1:], *command]
    begin = time.monotonic()
    if part.timed:
        until = begin + 0.8 * limit  # the rest for what is under way then
        command.append(f"--until={until:.0f}")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": paths, **part.environment}
    output = cast(TextIO, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))  # noqa: SIM115
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(part.name, "failed", summary=f"{command[0]}: {error.strerror}")
    return Running(part, command, process, output, begin, begin + limit)


def run(group: Sequence[Part], left: float, output: Path, dry_run: bool) -> Iterator[Outcome]:
    """Runs parts at the same time; yields how each ended when it has."""
    running: list[Running] = []
    try:
        for part in group:
            begun = start(part, left, dry_run)
            if isinstance(begun, Outcome):
                yield begun
            else:
                running.append(begun)
        while running:
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                yield one.outcome(output)
            time.sleep(0.05)
    finally:
        for one in running:
            one.stop(signal.SIGKILL)
