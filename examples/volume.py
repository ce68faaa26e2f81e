"""A volume: a dense CRF over three axes sharpens the segmentation of a noisy scan.

    python examples/volume.py

A made scan of one channel holds a bright ball in a tube; a classifier by brightness alone is noisy.
Widths of the kernels are in voxels, one an axis: slices lie farther apart than pixels. Draws
volume.png.
"""

import matplotlib.pyplot as plt
import torch

import deepcrf_ext as dc

generator = torch.Generator().manual_seed(0)
depth, height, width = 24, 72, 96
z, y, x = torch.meshgrid(
    torch.linspace(-1, 1, depth),
    torch.linspace(-1, 1, height),
    torch.linspace(-1.3, 1.3, width),
    indexing="ij",
)
truth = torch.zeros(depth, height, width, dtype=torch.long)
truth[(y**2 + z**2) < 0.5] = 1
truth[(x - 0.3) ** 2 + y**2 + z**2 < 0.2] = 2
brightness = torch.tensor([40.0, 110.0, 190.0])
scan = brightness[truth] + 30 * torch.randn(truth.shape, generator=generator)
scan = scan.clamp(0, 255)[None, None]  # [B, C, D, H, W]

distances = (scan - brightness[None, :, None, None, None]) / 30
unary = 0.5 * distances.square()  # energies, [B, K, D, H, W]

params = dc.DenseCRFParams(
    gaussian_sxy=(1, 2, 2),
    gaussian_weight=6,
    bilateral_sxy=(4, 12, 12),
    bilateral_srgb=60,
    bilateral_weight=6,
)
marginals = dc.dense_crf(unary, scan, params, iterations=5)

before, after = unary.argmin(1)[0], marginals.argmax(1)[0]
for name, labels in (("brightness alone", before), ("dense CRF", after)):
    print(f"{name}: {(labels == truth).float().mean():.1%} of the voxels right")

figure, axes = plt.subplots(1, 4, figsize=(18, 4), subplot_kw={"xticks": [], "yticks": []})
middle = depth // 2
axes[0].imshow(scan[0, 0, middle], cmap="gray")
axes[0].set_title("a slice of the scan")
for axis, labels, title in (
    (axes[1], before, "brightness alone"),
    (axes[2], after, "dense CRF"),
    (axes[3], truth, "truth"),
):
    axis.imshow(labels[middle], vmin=0, vmax=2)
    axis.set_title(title)
figure.savefig("volume.png", bbox_inches="tight")
print("drawn in volume.png")
