"""Label context and sharp outlines for a torchvision network, trained on a folder.

    python examples/torchvision_network.py IMAGES MASKS CLASSES EPOCHS

Images and masks (PNGs of class indices, 255 = ignore) share their names. Draws crf.png.
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


def load(path: Path, masks: Path) -> tuple[torch.Tensor, torch.Tensor]:
    image = (np.array(Image.open(path).convert("RGB")) - MEAN) / STD
    mask = np.array(Image.open(masks / f"{path.stem}.png"))
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).long()


torch.manual_seed(0)
folder, masks, classes, epochs = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
samples = [load(path, masks) for path in sorted(folder.iterdir())]
images, labels = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
model = Segmenter(classes)
optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
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
    print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")

shown = [labels[:1], *(m.argmax(1) for m in model.eval()(images[:1]))]
figure, axes = plt.subplots(1, 5, figsize=(20, 4))
axes[0].imshow((images[0].permute(1, 2, 0).numpy() * STD + MEAN).astype(np.uint8))
for axis, map_ in zip(axes[1:], shown, strict=True):
    axis.imshow(map_[0], vmin=0, vmax=classes, cmap="tab20")
figure.savefig("crf.png", bbox_inches="tight")
