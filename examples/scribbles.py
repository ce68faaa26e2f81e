"""Train from scribbles: a few labelled pixels an image, and a CRF loss that teaches the others.

python examples/scribbles.py [picture.png]    (scenes are rendered, no data is needed)
"""

import sys

import numpy as np
import torch
from torch import nn

from deepcrf_ext import nn as crf
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.evaluation.regions import SegmentationMetrics
from deepcrf_ext.pictures.labels import picture_grid

STEPS, CLASSES, DOTS = 100, len(Scenes.classes), 2  # pixels labelled of each class an image shows
PALETTE = np.concatenate([Scenes.palette, np.full((256 - CLASSES, 3), 224, np.uint8)])
GATED, DENSE = crf.GatedCRFLoss(), crf.DenseCRFLoss(sxy=10)
LOSSES = {"dots alone": (GATED, 0), "gated": (GATED, 0.02), "dense": (DENSE, 0.015)}  # and weights


def load(split):
    """Images [N, 3, H, W] and labels [N, H, W]; classes that only their context tells are one."""
    samples = [Scenes(split, size=(48, 64))[i] for i in range(32)]
    labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).long()
    for first, second in Scenes.look_alikes:
        labels[labels == Scenes.classes.index(second)] = Scenes.classes.index(first)
    return torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2), labels


def train(images, dots, crf_loss, weight):
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for d in (2, 4, 8):
        layers += [nn.Conv2d(16, 16, 3, padding=d, dilation=d), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(16, CLASSES, 1))
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(STEPS):
        batch = torch.randperm(len(images))[:8]
        logits = network(images[batch] / 127.5 - 1)
        loss = nn.functional.cross_entropy(logits, dots[batch], ignore_index=255)
        loss = loss + weight * min(1, 2 * step / STEPS) * crf_loss(logits.softmax(1), images[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return lambda images: network.eval()(images / 127.5 - 1).argmax(1)


def main(path="scribbles.png"):
    """Train with each loss; write a picture, return the mean IoU on other scenes."""
    torch.manual_seed(0)
    (images, labels), (others, truth), scores = load("train"), load("val"), {}
    dots, noise = torch.full_like(labels, 255), torch.rand(labels.shape)
    for label in range(CLASSES):
        ranks = noise.where(labels == label, 2).flatten(1).argsort(1).argsort(1).view_as(labels)
        dots[(labels == label) & (ranks < DOTS)] = label
    columns = {"image": images.permute(0, 2, 3, 1).numpy(), "labelled": PALETTE[dots]}
    for name, (crf_loss, weight) in LOSSES.items():
        predict, metrics = train(images, dots, crf_loss, weight), SegmentationMetrics(CLASSES)
        metrics.update(predict(others), truth)
        scores[name] = metrics.compute().mean_iou
        print(f"{name}: mean IoU {scores[name]:.1%} on other scenes")
        columns[f"{name}: mIoU {scores[name]:.2f}"] = PALETTE[predict(images)]
    rows = [*zip(*columns.values(), PALETTE[labels], strict=True)]
    picture_grid(rows[:4], [*columns, "truth"], path)
    print(f"drawn in {path}")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
