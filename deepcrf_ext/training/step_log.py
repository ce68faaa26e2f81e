"""How far a training is, on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

from deepcrf_ext.progress import SECONDS, Display


class StepLog(Display):
    """Shows steps as they are done; a context.

    Args:
        total: steps of the whole run.
        done: steps that are done already.
        images: of a step.
        quiet: show nothing.
    """

    def __init__(self, total: int, done: int, images: int, quiet: bool = False) -> None:
        super().__init__(quiet, total=total, initial=done, unit="step", smoothing=0.05)
        self.total, self.done, self.images, self.quiet = total, done, images, quiet
        self.first, self.last_line = done, done
        self.since, self.aside_seconds = time.monotonic(), 0.0
        self.doing = ""

    def describe(self, doing: str) -> None:
        """Says what is being done, as `epoch 3/12`."""
        self.doing = doing
        self.bar.set_description(doing)

    @contextmanager
    def aside(self, doing: str) -> Iterator[None]:
        """Within it something else than steps is done, whose time is not theirs."""
        self.describe(doing)
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        self.since += seconds
        self.aside_seconds += seconds

    def step(self, losses: Mapping[str, float], lr: float) -> None:
        """Counts a step that had these losses and this learning rate."""
        self.done += 1
        named = {name: f"{value:.3f}" for name, value in losses.items()}
        self.bar.set_postfix(named)
        self.bar.update()
        now = time.monotonic()
        if not self.lines or (now - self.since < SECONDS and self.done > self.first + 1):
            return
        a_step = (now - self.since) / (self.done - self.last_line)
        self.since, self.last_line = now, self.done
        aside = self.aside_seconds / (self.done - self.first)
        left = timedelta(seconds=round((a_step + aside) * (self.total - self.done)))
        text = ", ".join(f"{name} {value}" for name, value in named.items())
        print(
            f"{self.doing}, step {self.done}/{self.total}: loss {text}; lr {lr:.3g}; "
            f"{self.images / max(a_step, 1e-9):.3g} images/s; {left} left",
            file=sys.stderr,
            flush=True,
        )

    def write(self, line: str) -> None:
        """A line on stdout, without disturbing the bar."""
        if not self.quiet:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


def epoch_summary(epoch: int, losses: Mapping[str, float], mean_iou: Mapping[str, float]) -> str:
    """The line that ends an epoch: its mean losses, and what validation measured."""
    parts = [f"{name} {value:.3f}" for name, value in losses.items()]
    scores = [f"{title} {100 * value:.2f}" for title, value in mean_iou.items()]
    return f"epoch {epoch}: loss {', '.join(parts)}; validation mIoU {', '.join(scores)}"
