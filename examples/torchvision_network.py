"""Label context and sharp outlines for a torchvision network.

    python examples/torchvision_network.py [IMAGES MASKS [EPOCHS]]    draws crf.png, prints mean IoU

Images, all of one size, and masks (PNGs of class indices, 255 = ignore) share their names;
without them it trains on 64 rendered scenes.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models import resnet18

from deepcrf_ext import nn as crf
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.evaluation.regions import SegmentationMetrics

MEAN, STD = np.array([124, 116, 104], np.float32), np.array([58, 57, 57], np.float32)


class Segmenter(torch.nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = resnet18(weights=None).children()  # weights="DEFAULT": from ImageNet
        self.body = torch.nn.Sequential(*list(layers)[:6])  # 128 channels at stride 8
        self.classifier = torch.nn.Conv2d(128, classes, 1)
        self.pairwise = crf.PairwiseCRF(128, classes, hidden=64)
        self.dense = crf.DenseCRF(classes, mean=MEAN, std=STD)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = self.body(images)
        logits = self.classifier(features)
        maps = (logits.log_softmax(1), self.pairwise(logits, features))
        maps = [F.interpolate(m, images.shape[2:], mode="bilinear") for m in maps]
        return [*maps, self.dense(maps[-1], images)]  # log-probabilities of pixels


torch.manual_seed(0)
if len(sys.argv) > 1:
    paths, masks = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2])
    photos = np.stack([Image.open(path).convert("RGB") for path in paths])
    labels = np.stack([Image.open(masks / f"{path.stem}.png") for path in paths])
else:
    samples = [Scenes("train")[i] for i in range(64)]
    photos, labels = np.stack([s.image for s in samples]), np.stack([s.labels for s in samples])
images = torch.from_numpy((photos - MEAN) / STD).permute(0, 3, 1, 2)
classes, labels = int(labels[labels != 255].max()) + 1, torch.from_numpy(labels).long()
epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 45
model = Segmenter(classes)
optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2 * epochs // 3], gamma=0.25)
for epoch in range(epochs):
    for batch in torch.randperm(len(images)).split(4):
        if epoch < 2 * epochs // 3:  # every part by itself
            features = model.body(images[batch])
            logits = model.classifier(features)
            loss = sum(model.pairwise.loss(logits, features, labels[batch]).values())
        else:  # end to end
            loss = sum(F.nll_loss(m, labels[batch], ignore_index=255) for m in model(images[batch]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    schedule.step()
    print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")

with torch.no_grad():  # labels [3, images, H, W]
    parts = [torch.stack(model.eval()(batch)).argmax(2) for batch in images.split(4)]
maps = [photos, labels, *torch.cat(parts, 1)]
titles = ["image", "truth", "network", "with PairwiseCRF", "with DenseCRF on top"]
for title, found in zip(titles[2:], maps[2:], strict=True):
    metrics = SegmentationMetrics(classes)
    metrics.update(found, labels)
    print(f"{title}: mean IoU {100 * metrics.compute().mean_iou:.1f} %")
figure, axes = plt.subplots(1, 5, figsize=(20, 3.4), subplot_kw={"xticks": [], "yticks": []})
for axis, title, shown in zip(axes, titles, maps, strict=True):
    axis.imshow(shown[0], vmin=0, vmax=classes, cmap="tab20")
    axis.set_title(title)
figure.savefig("crf.png", bbox_inches="tight")
print("drawn in crf.png")
