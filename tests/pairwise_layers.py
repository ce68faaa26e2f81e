"""For tests of `PairwiseCRF`: layers whose potentials say something, and what they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwiseCRF, RelationConfig

RELATIONS = {
    "paper": ("surrounding", "above_below"),
    "own": {
        "near": dc.RangeBox(-1, 1, -1, 1),
        "beside": RelationConfig("left_right", 0.5, 0.3),
        "far": RelationConfig("surrounding", 0.9, 0.9, step=2),
    },
    "none": (),
}


def trained(relations: Any = RELATIONS["paper"], **options: Any) -> PairwiseCRF:
    """A layer of 5 channels and 3 labels in float64 whose potentials say something."""
    torch.manual_seed(0)
    layer = PairwiseCRF(5, 3, relations, hidden=6, **options).double()
    for index, (name, potential) in enumerate(layer.potentials.items()):
        torch.nn.init.normal_(potential.weight)
        torch.nn.init.normal_(potential.bias)
        torch.nn.init.constant_(layer.relation_weights[name], 0.1 + 0.2 * index)
    return layer


def inputs(
    batch: int = 2, height: int = 5, width: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(batch + 10 * height + width)
    logits = torch.randn(batch, 3, height, width, generator=random, dtype=torch.float64)
    features = torch.randn(batch, 5, height, width, generator=random, dtype=torch.float64)
    return logits.to(dtype), features.to(dtype)


def labels_of(logits: Tensor, ignored: float = 0.2) -> Tensor:
    random = torch.Generator().manual_seed(1)
    batch, classes, *size = logits.shape
    labels = torch.randint(classes, (batch, *size), generator=random)
    labels[torch.rand(labels.shape, generator=random) < ignored] = 255
    return labels
