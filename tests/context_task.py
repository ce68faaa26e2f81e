"""Scenes in which one class can be told from another only by what lies above it."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_CLASSES = 4
CHANNELS = 6
HEIGHT, WIDTH = 8, 9


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, 4, 8, 9], features [B, 6, 8, 9] and labels [B, 8, 9] of random scenes.

    Columns, three at a time, have class 0 or 1 in the upper rows, plain to see, and below it class
    2 where 0 is above, 3 where 1 is. Classes 2 and 3 look the same in logits and features.
    """
    random = torch.Generator().manual_seed(seed)
    upper = torch.randint(2, (count, 1, 3), generator=random).repeat_interleave(3, 2)
    border = torch.randint(2, 6, (count, 1, 3), generator=random).repeat_interleave(3, 2)
    below = torch.arange(HEIGHT)[:, None] >= border
    labels = upper + 2 * below
    looks = torch.where(below, 2, upper)

    def noise(channels: int) -> Tensor:
        return torch.randn(count, channels, HEIGHT, WIDTH, generator=random)

    seen = torch.stack([looks == 0, looks == 1, looks == 2, looks == 2], 1).float()
    logits = 4 * seen + 0.5 * noise(NUM_CLASSES)
    features = torch.cat([2 * seen[:, :3] + 0.3 * noise(3), noise(CHANNELS - 3)], 1)
    return logits, features, labels


def accuracy_below(scores: Tensor, labels: Tensor) -> float:
    """How many nodes of the classes that look the same are told apart."""
    below = labels >= 2
    return (scores.argmax(1) == labels)[below].float().mean().item()
