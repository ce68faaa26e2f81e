"""For tests of the commands: small data in the layout of CamVid, a run folder with a tiny untrained
model, and what a run logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from deepcrf_ext.config import DataConfig, ModelConfig, TrainConfig, to_dict
from deepcrf_ext.data.camvid import CamVid
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.records.checkpoint import save_checkpoint
from deepcrf_ext.records.run_folder import read_metrics

NUM_CLASSES = 11
TINY_MODEL = ModelConfig(
    widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(5,), hidden=3, pairwise_hidden=8
)
"""A step of its training takes milliseconds."""


def write_camvid(root: Path, split: str = "val", count: int = 3) -> Path:
    """Random images with labels of every class and of void, each of another size."""
    rng = np.random.default_rng(0)
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        height, width = 24 + 5 * index, 30 - 4 * index
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = rng.integers(0, NUM_CLASSES + 1, (height, width), dtype=np.uint8)
        cv2.imwrite(str(root / split / f"{index}.png"), image)
        cv2.imwrite(str(root / f"{split}annot" / f"{index}.png"), labels)
    return root


def write_learnable_camvid(root: Path, train: int, val: int, void: int = 0) -> Path:
    """Images of four classes, each of a brightness; image i is void in its first void · i columns.

    train, val: how many images of each split.
    """
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        for index in range(count):
            labels = np.kron(random.integers(0, 4, (3, 4)), np.ones((12, 12))).astype(np.uint8)
            image = (60 * labels[..., None] + random.integers(0, 20, (36, 48, 3))).astype(np.uint8)
            labels[:, : void * index] = NUM_CLASSES
            cv2.imwrite(str(root / split / f"{index}.png"), image)
            cv2.imwrite(str(root / f"{split}annot" / f"{index}.png"), labels)
    return root


def write_run(folder: Path, data_root: Path, **model_settings: Any) -> Path:
    """A run folder with last.pt: the small preset's networks, narrowed, with random weights.

    They are all potentials unless the settings say others.
    """
    settings = {"potentials": "all", **model_settings}
    model_config = ModelConfig(
        widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(8,), hidden=8, **settings
    )
    config = TrainConfig(
        data=DataConfig(dataset="camvid", root=data_root), model=model_config, amp=False
    )
    write_camvid(data_root)
    dataset = CamVid(data_root, "val")
    torch.manual_seed(0)
    model = DeepCRF(model_config, NUM_CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # spreads the energies, so that predictions hold several labels
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "config": to_dict(config),
        "classes": list(dataset.classes),
        "palette": dataset.palette.tolist(),
        "epoch": 2,
        "step": 7,
        "model": model.state_dict(),
    }
    save_checkpoint(folder / "last.pt", state)
    return folder


TINY_TRAINING = """
model: {widths: [4, 6], convs: [1, 1], pooled_blocks: 2, head_widths: [8], hidden: 8}
data: {dataset: camvid, crop: [32, 40], scale_range: [0.8, 1.25]}
optim: {lr: 0.02}
epochs: 3
batch_size: 2
validate_every: 1
device: cpu
"""


def training_options(folder: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Of a training of tiny networks, their settings in a file in `folder`; `more` overrides."""
    file = folder / "tiny.yaml"
    file.write_text(TINY_TRAINING)
    return ["--config", str(file), "--data.root", str(data), "--output", str(output), *more]


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """What a training logged as "train" or "val"."""
    return [line for line in read_metrics(run) if line["kind"] == kind]
