"""The deep structured CRF: independent potential networks, their losses and their prediction."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.config import ModelConfig, paper_relations
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.errors import InputError
from deepcrf_ext.models.features import ImagePyramid
from deepcrf_ext.models.potential_nets import PairwiseNet, UnaryNet
from deepcrf_ext.models.refine import DenseCRFSettings, refine
from deepcrf_ext.models.vgg import VGGBlocks
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.ops.graph import EdgeGraph
from deepcrf_ext.ops.mean_field import mean_field
from deepcrf_ext.ops.pairwise_nll import pairwise_nll
from deepcrf_ext.ops.potentials import FactoredPotential


@dataclass(frozen=True)
class Variant:
    """Which potentials of a model a prediction uses: a row of the paper's ablation, or another.

    Without a unary every label costs the same. With `dense_crf`, a dense CRF over pixels follows
    (`deepcrf_ext.models.refine`).
    """

    unary: str | None
    relations: tuple[str, ...] = ()
    dense_crf: bool = False

    @property
    def potentials(self) -> tuple[str, ...]:
        """Names of all its potentials."""
        return self.relations if self.unary is None else (self.unary, *self.relations)


VARIANTS: dict[str, Variant] = {
    "unary-1scale": Variant("unary_1scale"),
    "unary-3scales": Variant("unary"),
    "pairwise-1": Variant(None, ("surrounding",)),
    "pairwise-2": Variant(None, ("above_below",)),
    "1unary+2pair": Variant("unary", ("surrounding", "above_below")),
    "full": Variant("unary", ("surrounding", "above_below"), dense_crf=True),
}
"""The variants of the paper's ablation by name, what `--row` and `--rows` take."""


@dataclass(frozen=True)
class CRFEnergies:
    """Energies of a batch of images whose node grids have one size, grid = (B, h, w).

    unaries: by potential name [B·h·w, K]; pairwise: by relation name.
    """

    unaries: dict[str, Tensor]
    pairwise: dict[str, FactoredPotential]
    grid: tuple[int, int, int]


def node_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels int64 [B, H, W] at the nodes of grids of h x w, by nearest neighbour: [B·h·w]."""
    nodes = functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")
    return nodes.long().flatten()


def node_weights(nodes: Tensor, class_weights: Tensor | None) -> Tensor:
    """What each node counts in a loss, float64 [N]: 1, or as its class; 0 where it is ignored.

    nodes: int64 [N], 255 = ignore. class_weights: [K] or None.
    """
    known = nodes != IGNORE_INDEX
    if class_weights is None:
        return known.double()
    return known * class_weights.double()[nodes.where(known, 0)]


def edge_weights(graph: EdgeGraph, nodes: Tensor, class_weights: Tensor | None) -> Tensor:
    """What each edge counts in a loss, float64 [E]: the geometric mean of its `node_weights`."""
    roots = node_weights(nodes, class_weights).sqrt()
    sources = roots.repeat_interleave(graph.row_offsets.diff(), output_size=graph.num_edges)
    return sources * roots[graph.targets]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · value / Σ weight, in the dtype of the values; 0 where all weights are 0."""
    total = weights.sum()
    return (weights.to(values.dtype) * values).sum() / total.where(total > 0, 1).to(values.dtype)


def node_nll(energies: Tensor, nodes: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Softmax negative log-likelihood of labels [N] at energies [N, K], mean over valid nodes.

    255 = ignore; 0 where nothing is valid. class_weights: see `node_weights`.
    """
    values = functional.cross_entropy(-energies, nodes, ignore_index=IGNORE_INDEX, reduction="none")
    return weighted_mean(values, node_weights(nodes, class_weights))


@contextmanager
def _random_numbers_of(name: str, seed: int) -> Iterator[None]:
    """Random numbers that depend on these two alone: not on which other networks there are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        yield


class DeepCRF(nn.Module):
    """A CRF over the node grid of an image whose energies are networks.

    Images are float32 RGB [B, 3, H, W] in 0..255 of any size; B·h·w nodes are numbered image by
    image and row by row.

    Args:
        config: networks and relations.
        num_classes: K.

    Attributes:
        potentials: the network of each potential by name.
        class_weights: None, or float32 [K], how much each class counts in the losses: a node as its
            label, an edge as the geometric mean of its two labels. Not part of the state.
    """

    class_weights: Tensor | None

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f"num_classes is {num_classes}; it must be 1 to {IGNORE_INDEX}")
        self.config = config
        self.num_classes = num_classes
        self.potential_names = tuple(dict.fromkeys(config.potentials or config.all_potentials()))
        self.pyramid = ImagePyramid(config.scales)
        self.blocks = VGGBlocks(config, len(config.scales)) if config.share_blocks else None
        self.potentials = nn.ModuleDict()
        seed = int(torch.randint(2**31, (), device="cpu"))
        for name in self.potential_names:
            kind = PairwiseNet if name in config.relations else UnaryNet
            with _random_numbers_of(name, seed):
                network = kind(config, num_classes, self._num_scales(name))
            try:
                self.potentials[name] = network
            except KeyError as error:  # a dot, or what a module calls something else by
                raise InputError(f"model.relations: {name!r} cannot be a name") from error
        self.register_buffer("class_weights", None, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _num_scales(self, name: str) -> int:
        return 1 if name == "unary_1scale" else len(self.config.scales)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pyramid.mean.device

    def unary_names(self) -> tuple[str, ...]:
        """Names of the unary potentials."""
        return tuple(name for name in self.potential_names if name not in self.config.relations)

    def parameters_of(self, names: Iterable[str]) -> list[nn.Parameter]:
        """The parameters of the networks of the named potentials."""
        return [parameter for name in names for parameter in self.potentials[name].parameters()]

    def can_warm_start(self) -> bool:
        """Whether there is a unary for the relations to start from, and a relation."""
        return "unary" in self.potential_names and self.unary_names() != self.potential_names

    def start_relations_from_unary(self) -> None:
        """Starts the network of every relation from the unary's (`PairwiseNet.start_from`)."""
        unary = self.potentials["unary"]
        assert isinstance(unary, UnaryNet)
        for network in self.potentials.values():
            if isinstance(network, PairwiseNet):
                network.start_from(unary)

    def variants(self) -> dict[str, Variant]:
        """The variants that this model has all potentials for, by name.

        These are of `VARIANTS`; further relations give variants of their own, `pairwise-NAME`, and
        one with all of them, as `1unary+3pair`.
        """
        have = set(self.potential_names)
        variants = {
            name: variant
            for name, variant in VARIANTS.items()
            if have.issuperset(variant.potentials)
        }
        crf = self.default_variant()
        for relation in crf.relations:
            if relation not in paper_relations():
                variants[f"pairwise-{relation}"] = Variant(None, (relation,))
        if crf.unary == "unary" and crf.relations and crf not in variants.values():
            variants[f"1unary+{len(crf.relations)}pair"] = crf
        return variants

    def name_of(self, variant: Variant) -> str:
        """What a variant is called in options, logs, tables and pictures.

        Its name in `variants`, or the names of its potentials if it is not there, as
        `unary_1scale+above_below`.
        """
        names = {known: name for name, known in self.variants().items()}
        return names.get(variant, "+".join(variant.potentials))

    def default_variant(self) -> Variant:
        """The unary (if there is one) with every relation of this model, without a dense CRF."""
        names = self.potential_names
        unary = next((name for name in ("unary", "unary_1scale") if name in names), None)
        return Variant(unary, tuple(name for name in names if name in self.config.relations))

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Piecewise negative log-likelihood of each potential (paper, section 5), scalars.

        Args:
            images: [B, 3, H, W].
            labels: int64 [B, H, W], 255 = ignore; resized to the node grid by nearest neighbour.

        Each is the mean over valid nodes or edges, weighted by `class_weights`; 0 where there is
        none.
        """
        inputs = self.inputs(images)
        return {name: self.loss(name, inputs, labels) for name in self.potential_names}

    def inputs(self, images: Tensor, names: Iterable[str] | None = None) -> list[Tensor]:
        """What the networks of the named potentials (default: all) read, the largest scale first.

        The images at every scale, [B, 3, H_s, W_s]; where blocks 1-5 are shared
        (`ModelConfig.share_blocks`), their maps of these, [B, C, h_s, w_s].
        """
        count = max(self._num_scales(name) for name in names or self.potential_names)
        scales = self.pyramid(images)[:count]
        if self.blocks is None:
            return scales
        return [self.blocks(scale, index) for index, scale in enumerate(scales)]

    def loss(self, name: str, inputs: list[Tensor], labels: Tensor) -> Tensor:
        """One of `losses`, from what `self.inputs` returned."""
        unary, potential, grid = self._evaluate(name, inputs)
        nodes = node_labels(labels, grid[1:])
        if potential is None:
            assert unary is not None
            return node_nll(unary, nodes, self.class_weights)
        if self.class_weights is None:
            return pairwise_nll(potential, nodes, IGNORE_INDEX)
        values = pairwise_nll(potential, nodes, IGNORE_INDEX, reduction="none")
        return weighted_mean(values, edge_weights(potential.graph, nodes, self.class_weights))

    def loss_count(self, name: str, labels: Tensor) -> Tensor:
        """The nodes, or edges of a relation, that `loss` of these labels is a mean over, float64.

        Each counts as much as it weighs: 1 without `class_weights`.
        """
        if name not in self.config.relations:
            return self.node_count(labels)
        size = self.grid_size(*labels.shape[1:])
        graph = relation_graph(
            self.config.relations[name], len(labels), *size, device=labels.device
        )
        return edge_weights(graph, node_labels(labels, size), self.class_weights).sum()

    def node_count(self, labels: Tensor) -> Tensor:
        """The nodes that have a label other than ignore, by weight, float64."""
        nodes = node_labels(labels, self.grid_size(*labels.shape[1:]))
        return node_weights(nodes, self.class_weights).sum()

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of nodes of an image of this size."""
        sizes = self.pyramid.sizes(height, width)[0]
        stride = 2**self.config.pooled_blocks
        return -(-sizes[0] // stride), -(-sizes[1] // stride)

    def energies(self, images: Tensor, names: Iterable[str] | None = None) -> CRFEnergies:
        """Runs the named networks (default: all) once each."""
        return self.energies_of(self.inputs(images, names), names)

    def energies_of(self, inputs: list[Tensor], names: Iterable[str] | None = None) -> CRFEnergies:
        """`energies` from what `self.inputs` returned."""
        names = tuple(self.potential_names if names is None else names)
        if not names:
            raise ValueError("names is empty; it must name at least one potential")
        unaries: dict[str, Tensor] = {}
        pairwise: dict[str, FactoredPotential] = {}
        grid = (0, 0, 0)
        for name in names:
            unary, potential, grid = self._evaluate(name, inputs)
            if unary is not None:
                unaries[name] = unary
            if potential is not None:
                pairwise[name] = potential
        return CRFEnergies(unaries, pairwise, grid)

    def _evaluate(
        self, name: str, inputs: list[Tensor]
    ) -> tuple[Tensor | None, FactoredPotential | None, tuple[int, int, int]]:
        """Unary energies [N, K] or a pairwise potential, and the grid (B, h, w)."""
        if name not in self.potential_names:
            raise ValueError(f"potential {name!r} is not one of {', '.join(self.potential_names)}")
        network = self.potentials[name]
        output = network(inputs[: self._num_scales(name)])
        if not isinstance(network, PairwiseNet):
            batch, height, width, _ = output.shape
            return output.flatten(0, 2), None, (batch, height, width)
        batch, height, width, _ = output[0].shape
        relation = self.config.relations[name]
        graph = relation_graph(relation, batch, height, width, output[0].device)
        return None, network.potential(graph, *output), (batch, height, width)

    def crf(
        self, energies: CRFEnergies, variant: str | Variant
    ) -> tuple[Tensor, list[FactoredPotential]]:
        """A variant's unary energies [N, K], zeros where it has none, and pairwise potentials."""
        chosen = self._variant(variant)
        potentials = [energies.pairwise[name] for name in chosen.relations]
        if chosen.unary is not None:
            return energies.unaries[chosen.unary], potentials
        size = (math.prod(energies.grid), self.num_classes)
        return torch.zeros(size, device=self.device), potentials

    def marginals(
        self, energies: CRFEnergies, variant: str | Variant, iterations: int | None = None
    ) -> Tensor:
        """Mean-field marginals of a variant's potentials on the node grid, float32 [B, K, h, w].

        A dense CRF needs pixels, so it is not part of them.

        Args:
            energies: what `energies` returned for at least the variant's potentials.
            variant: a name of `variants`, or a variant.
            iterations: mean-field iterations (default: the model's).
        """
        unary, potentials = self.crf(energies, variant)
        batch, height, width = energies.grid
        steps = self.config.iterations if iterations is None else iterations
        nodes = mean_field(unary, potentials, steps) if potentials else (-unary).softmax(1)
        return nodes.view(batch, height, width, self.num_classes).permute(0, 3, 1, 2)

    def predict(
        self,
        images: Tensor,
        variant: str | Variant,
        size: tuple[int, int] | None = None,
        dense_crf: DenseCRFSettings | None = None,
    ) -> Tensor:
        """Marginals [B, K, H, W] float32, grown bilinearly to `size` (default: the images').

        A variant with a dense CRF is refined by it, with the settings `dense_crf` (default: those
        of `DenseCRFSettings`); `size` must then be the images'.
        """
        chosen = self._variant(variant)
        pixels = (images.shape[2], images.shape[3])
        if chosen.dense_crf and size not in (None, pixels):
            raise ValueError(f"size is {size}; with a dense CRF it must be the images', {pixels}")
        nodes = self.marginals(self.energies(images, chosen.potentials), chosen)
        if chosen.dense_crf:
            return refine(nodes, images, dense_crf)
        return functional.interpolate(nodes, size or pixels, mode="bilinear", align_corners=False)

    def _variant(self, variant: str | Variant) -> Variant:
        if isinstance(variant, str):
            known = {**VARIANTS, **self.variants()}
            if variant not in known:
                raise ValueError(f"variant: got {variant!r}, must be one of {', '.join(known)}")
            variant = known[variant]
        missing = [name for name in variant.potentials if name not in self.potential_names]
        if missing:
            raise ValueError(f"variant: needs the potential {missing[0]!r}, which this model lacks")
        return variant
