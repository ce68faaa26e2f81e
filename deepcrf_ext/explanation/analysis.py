"""What a trained CRF has learnt, and why it labelled a node as it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcrf_ext.constants import IGNORE_INDEX, Amp
from deepcrf_ext.data import SegmentationDataset, to_tensors
from deepcrf_ext.evaluation.view_marginals import view_energies
from deepcrf_ext.evaluation.views import ONE_VIEW, Views
from deepcrf_ext.models import CRFEnergies, DeepCRF, Variant
from deepcrf_ext.ops.potentials import FactoredPotential
from deepcrf_ext.progress import progress

_CHUNK_VALUES = 1 << 24  # of the energies or hidden units of edges that exist at a time


@dataclass(frozen=True)
class Compatibility:
    """What labels a relation puts together, from all its edges (p, q) over a data set.

    All are float64 [K, K], the label of p in rows, of q in columns.

    energies: mean of V_pq.
    learnt: mean of softmax(-V_pq), the pairs that the network expects; sums to 1.
    labelled: the share of each pair among the edges with two labelled ends; 0 without labels.
    """

    energies: Tensor
    learnt: Tensor
    labelled: Tensor

    @property
    def affinity(self) -> Tensor:
        """Minus the mean energies with the means of rows and columns taken out, [K, K], in nats.

        What is left is about the pair alone: above 0 where the two labels suit each other better
        than each suits any other label.
        """
        rows, columns = self.energies.mean(1, keepdim=True), self.energies.mean(0, keepdim=True)
        return rows + columns - self.energies - self.energies.mean()


def log_ratio_to_chance(pairs: Tensor) -> Tensor:
    """log2 of how much more often a pair occurs than if its labels were independent, [K, K].

    pairs: shares, [K, K]. -inf for a pair that never occurs, NaN for a label that never does.
    """
    chance = pairs.sum(1, keepdim=True) * pairs.sum(0, keepdim=True)
    return torch.where(chance > 0, pairs / chance, torch.nan).log2()


@torch.inference_mode()
def compatibility(
    model: DeepCRF,
    dataset: SegmentationDataset,
    relations: Sequence[str],
    amp: Amp = None,
    views: Views = ONE_VIEW,
) -> dict[str, Compatibility]:
    """`Compatibility` of each relation, averaged over the edges of all images of a data set.

    model: in eval mode, on the device to use. amp: the precision of the convolutions, as of
    `TrainConfig.amp`. views: how the networks see each image; the edges of all views count.
    Raises InputError for a sample that cannot be read.
    """
    device = model.device
    size = (model.num_classes, model.num_classes)
    sums = {
        name: [torch.zeros(size, dtype=torch.float64, device=device) for _ in range(3)]
        for name in relations
    }
    edges = dict.fromkeys(relations, 0)
    for index in progress(range(len(dataset)), len(dataset), "compatibility", "image"):
        sample = dataset[index]
        labels = to_tensors(sample)[1]
        for energies, nodes in view_energies(model, sample.image, labels, relations, views, amp):
            for name, potential in energies.pairwise.items():
                edges[name] += potential.graph.num_edges
                for total, part in zip(sums[name], _pair_sums(potential, nodes), strict=True):
                    total += part
    result = {}
    for name, (energy, learnt, labelled) in sums.items():
        count = max(edges[name], 1)
        pairs = labelled / labelled.sum().clamp(min=1)
        result[name] = Compatibility(energy.cpu() / count, learnt.cpu() / count, pairs.cpu())
    return result


def _pair_sums(potential: FactoredPotential, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over edges of the energies, of softmax(-energies), and of pairs of labels [N]."""
    count = potential.num_labels
    first, second = potential.graph.edge_index()
    energy = torch.zeros(count * count, dtype=torch.float64, device=nodes.device)
    learnt = torch.zeros_like(energy)
    step = max(1, _CHUNK_VALUES // max(count * count, potential.source.shape[1]))
    for start in range(0, len(first), step):
        edges = slice(start, start + step)
        values = potential.energies_between(first[edges], second[edges]).float().flatten(1)
        energy += values.double().sum(0)
        learnt += (-values).softmax(1).double().sum(0)
    known = (nodes[first] != IGNORE_INDEX) & (nodes[second] != IGNORE_INDEX)
    pairs = nodes[first][known] * count + nodes[second][known]
    labelled = torch.bincount(pairs, minlength=count * count).double()
    size = (count, count)
    return energy.view(size), learnt.view(size), labelled.view(size)


def node_messages(
    potential: FactoredPotential, marginals: Tensor, node: int
) -> tuple[Tensor, Tensor]:
    """What each neighbour adds to the expected pairwise energy of a node.

    marginals: [N, K]. Returns the neighbours, int64 [M], ascending, and their messages, [M, K];
    these sum to row `node` of `deepcrf_ext.pairwise_messages`. A neighbour by edges of both
    directions counts once, with both.
    """
    graph = potential.graph
    start, end = graph.row_offsets[node : node + 2].tolist()
    targets = graph.targets[start:end].long()
    start, end = graph.reverse_row_offsets[node : node + 2].tolist()
    sources = graph.reverse_sources[start:end].long()
    outwards = potential.energies_between(torch.full_like(targets, node), targets)
    inwards = potential.energies_between(sources, torch.full_like(sources, node))
    outwards, inwards = outwards.to(marginals.dtype), inwards.to(marginals.dtype)
    messages = torch.cat(
        [
            torch.einsum("ekj,ej->ek", outwards, marginals[targets]),
            torch.einsum("ejk,ej->ek", inwards, marginals[sources]),
        ]
    )
    neighbours, position = torch.cat([targets, sources]).unique(return_inverse=True)
    total = messages.new_zeros(len(neighbours), messages.shape[1])
    return neighbours, total.index_add(0, position, messages)


@dataclass(frozen=True)
class NodeExplanation:
    """Why the mean field of an image gives a node its label, in log odds against another label.

    node: row and column on the grid of nodes.
    label: the label in the end. against: the unary's label where that is another, else the
        runner-up in the end.
    unary_probabilities, probabilities: float32 [K], of the unary alone and in the end.
    unary: log odds of `label` against `against` of the unary alone, in nats.
    gains: by relation, float32 [h, w]: what each neighbour adds to them. NaN for other nodes.
    """

    node: tuple[int, int]
    label: int
    against: int
    unary_probabilities: Tensor
    probabilities: Tensor
    unary: float
    gains: dict[str, Tensor]

    @property
    def sums(self) -> Mapping[str, float]:
        """What each relation adds to the log odds. With `unary` they make those in the end."""
        return {name: float(gain.nansum()) for name, gain in self.gains.items()}

    def as_dict(self, classes: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
        """All of it as plain JSON types; neighbours by the size of what they add.

        size: height and width of the image in pixels; "pixel" is the centre (x, y) of a node.
        """

        def chances(values: Tensor) -> dict[str, float]:
            return {name: float(value) for name, value in zip(classes, values, strict=True)}

        neighbours: list[dict[str, Any]] = []
        for name, gain in self.gains.items():
            height, width = gain.shape
            for row, column in torch.nonzero(~gain.isnan()).tolist():
                pixel = ((column + 0.5) * size[1] / width, (row + 0.5) * size[0] / height)
                neighbours.append(
                    {
                        "relation": name,
                        "node": [row, column],
                        "pixel": [round(value, 1) for value in pixel],
                        "nats": float(gain[row, column]),
                    }
                )
        neighbours.sort(key=lambda item: -abs(item["nats"]))
        return {
            "node": list(self.node),
            "label": classes[self.label],
            "against": classes[self.against],
            "log_odds": {
                "unary": self.unary,
                **self.sums,
                "total": self.unary + sum(self.sums.values()),
            },
            "unary_probabilities": chances(self.unary_probabilities),
            "probabilities": chances(self.probabilities),
            "neighbours": neighbours,
        }


@torch.inference_mode()
def explain_node(
    model: DeepCRF, energies: CRFEnergies, variant: Variant, node: tuple[int, int]
) -> NodeExplanation:
    """Takes the last mean-field update of a node apart, neighbour by neighbour: exact.

    energies: of one image. variant: a unary and at least one relation. node: row and column on the
    grid. Raises ValueError when the variant or the node does not fit, or the model's mean field has
    no iterations.
    """
    _, height, width = energies.grid
    if variant.unary is None or not variant.relations:
        raise ValueError(f"variant: got {variant}, must have a unary and relations")
    if not (0 <= node[0] < height and 0 <= node[1] < width):
        raise ValueError(f"node: got {node}, must be one of the grid of {height} x {width} nodes")
    steps = model.config.iterations
    if steps < 1:
        raise ValueError("model: got 0 mean-field iterations, must have at least one")
    index = node[0] * width + node[1]
    before = model.marginals(energies, variant, steps - 1).flatten(2)[0].t().contiguous()
    after = model.marginals(energies, variant)[0, :, node[0], node[1]]
    costs = energies.unaries[variant.unary][index]
    label, start = int(after.argmax()), int(costs.argmin())
    against = start if start != label else int(after.scatter(0, after.argmax(), -1).argmax())
    gains = {}
    _, potentials = model.crf(energies, variant)
    for name, potential in zip(variant.relations, potentials, strict=True):
        neighbours, messages = node_messages(potential, before, index)
        gain = costs.new_full((height * width,), torch.nan)
        gain[neighbours] = messages[:, against] - messages[:, label]
        gains[name] = gain.view(height, width).cpu()
    return NodeExplanation(
        node,
        label,
        against,
        (-costs).softmax(0).cpu(),
        after.cpu(),
        float(costs[against] - costs[label]),
        gains,
    )
