"""Any graph: a CRF over superpixels, whose pairwise energies are a network of their features.

    python examples/superpixels.py

Superpixels (scikit-image's SLIC) of a photograph are nodes; those that touch share an edge. The
truth here is whether a node is bright; the unary knows it for half of the nodes, and the pairwise
network learns from their edges what looks alike. Draws superpixels.png.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data, graph, segmentation
from torch.nn import functional as F

import deepcrf_ext as dc
from deepcrf_ext import nn as crf

photo = data.coffee()[::2, ::2]
regions = segmentation.slic(photo, n_segments=400, compactness=8, start_label=0)
count = int(regions.max()) + 1

# Features of a node: mean colour and centre.
rows, columns = np.indices(regions.shape)
channels = np.dstack([photo / 255, rows / 200, columns / 200]).reshape(-1, 5)
sizes = np.bincount(regions.ravel(), minlength=count)
sums = [np.bincount(regions.ravel(), channel, count) for channel in channels.T]
features = torch.tensor(np.stack(sums, 1) / sizes[:, None], dtype=torch.float32)

# Edges both ways between regions that touch.
touching = torch.tensor(list(graph.RAG(regions).edges)).t()
edges = torch.cat([touching, touching.flip(0)], 1)
neighbours = dc.EdgeGraph.from_edges(edges[0], edges[1], num_nodes=count)

truth = (features[:, :3].mean(1) > 0.45).long()  # bright or dark
seen = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.5
unary = torch.where(seen[:, None], F.one_hot(truth, 2) * -2.0, torch.zeros(2))  # energies

torch.manual_seed(0)
potential = crf.PairwisePotential(in_channels=5, num_classes=2, hidden=32)
optimiser = torch.optim.Adam(potential.parameters(), 1e-2)
known = torch.where(seen, truth, 255)  # edges with a hidden end drop out
for _ in range(200):
    loss = dc.pairwise_nll(potential(features, neighbours), known)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

with torch.no_grad():
    marginals = dc.mean_field(unary, [potential(features, neighbours)], iterations=5)
hidden = ~seen
for name, labels in (("unary", unary.argmin(1)), ("CRF", marginals.argmax(1))):
    accuracy = (labels == truth)[hidden].float().mean()
    print(f"{name}: {accuracy:.1%} of the hidden superpixels right")

figure, axes = plt.subplots(1, 4, figsize=(18, 4), subplot_kw={"xticks": [], "yticks": []})
axes[0].imshow(segmentation.mark_boundaries(photo, regions))
axes[0].set_title("superpixels")
for axis, labels, title in (
    (axes[1], torch.where(seen, truth, 2), "what the unary sees (yellow: hidden)"),
    (axes[2], marginals.argmax(1), "mean field"),
    (axes[3], truth, "truth"),
):
    axis.imshow(labels.numpy()[regions], vmin=0, vmax=2, cmap="cividis")
    axis.set_title(title)
figure.savefig("superpixels.png", bbox_inches="tight")
print("drawn in superpixels.png")
