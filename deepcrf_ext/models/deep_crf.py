"""The deep structured CRF: independent potential networks, their losses and their prediction."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcrf_ext.config import ModelConfig
from deepcrf_ext.constants import IGNORE_INDEX
from deepcrf_ext.errors import InputError
from deepcrf_ext.models.backbones import check_map, map_size, out_channels
from deepcrf_ext.models.features import (
    BackboneFeatures,
    FeatureNet,
    ImagePyramid,
    check_images,
    make_blocks,
)
from deepcrf_ext.models.potential_nets import CRFEnergies, PairwiseNet, UnaryNet
from deepcrf_ext.models.refine import DenseCRFSettings, refine
from deepcrf_ext.models.variants import VARIANTS, Variant, variants_of, whole_crf
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.nn.node_losses import (
    checked_node_labels,
    edge_nll,
    edge_weights,
    node_labels,
    node_nll,
    node_weights,
)
from deepcrf_ext.nn.pairwise_crf import log_marginals
from deepcrf_ext.ops._number_checks import checked_int, checked_iterations
from deepcrf_ext.ops.potentials import FactoredPotential


class DeepCRF(nn.Module):
    """A CRF over the node grid of an image whose energies are networks.

    Images are float32 RGB [B, 3, H, W] in 0..255 of any size; B·h·w nodes are numbered image by
    image and row by row.

    Args:
        config: networks and relations.
        num_classes: K.
        backbone: a module of one's own from images, [B, 3, H, W] less ImageNet's mean, over its
            standard deviation, to features [B, C, h, w]. It takes the place of the networks of the
            settings up to the features (widths, scales and the like), and all potentials share it.
            C is its attribute ``out_channels``, or found by a run.

    Attributes:
        potentials: the network of each potential by name.
        classes, palette: names of the K classes and their colours, K RGB triples in 0..255, where
            they are known; `save_pretrained` keeps them.
        class_weights: None, or float32 [K], how much each class counts in the losses: a node as its
            label, an edge as the geometric mean of its two labels. Not part of the state.
        label_smoothing: the share of a label that the losses of the unaries spread over all
            classes. Not part of the state.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it (InputError for what
            the settings ask for).

    Example:
        >>> import torch
        >>> import deepcrf_ext as dc
        >>> from deepcrf_ext.config import ModelConfig
        >>> model = dc.DeepCRF(ModelConfig(widths=(8, 16), convs=(1, 1), pooled_blocks=2), 5)
        >>> model(255 * torch.rand(1, 3, 60, 80)).shape
        torch.Size([1, 5, 60, 80])
    """

    class_weights: Tensor | None

    def __init__(
        self, config: ModelConfig, num_classes: int, backbone: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise TypeError(f"config: got {type(config).__name__}, must be a ModelConfig")
        if not 1 <= checked_int("num_classes", num_classes) <= IGNORE_INDEX:
            raise ValueError(f"num_classes: got {num_classes}, must be 1 to {IGNORE_INDEX}")
        self.config = config
        self.num_classes = num_classes
        self.classes: list[str] | None = None
        self.palette: list[list[int]] | None = None
        self.label_smoothing = 0.0
        self.potential_names = config.potential_names()
        self.pyramid = ImagePyramid(config.scales if backbone is None else (1.0,))
        self.backbone = backbone
        self._map_sizes: dict[tuple[int, int], tuple[int, int]] = {}
        shared = config.share_blocks and backbone is None
        self.blocks = make_blocks(config, len(config.scales)) if shared else None
        channels = None if backbone is None else out_channels(backbone)
        self.potentials = nn.ModuleDict()
        seed = int(torch.randint(2**31, (), device="cpu"))
        for name in self.potential_names:
            kind = PairwiseNet if name in config.relations else UnaryNet
            with torch.random.fork_rng(devices=[]):  # whatever other networks there are
                torch.default_generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                features = (
                    FeatureNet(config, self._num_scales(name))
                    if channels is None
                    else BackboneFeatures(channels, config.dropout)
                )
                network = kind(config, num_classes, features)
            try:
                self.potentials[name] = network
            except KeyError as error:  # a dot, or what a module calls something else by
                text = f"model.relations: got the name {name!r}, must be one of a module"
                raise InputError(text) from error
        self.register_buffer("class_weights", None, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model into a folder: ``model.safetensors`` and ``config.json``.

        A backbone's weights are written with the others; how it is made is not. Raises OSError when
        a file cannot be written.
        """
        from deepcrf_ext.models.pretrained import save_pretrained

        save_pretrained(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbone: nn.Module | None = None) -> DeepCRF:
        """The model that `save_pretrained` wrote, on the CPU and in eval mode.

        Args:
            folder: where it was written.
            backbone: for a model with a backbone, one like it; its weights are replaced.

        Raises:
            InputError: the folder holds no such model, or a file of it is damaged.
        """
        from deepcrf_ext.models.pretrained import from_pretrained

        return from_pretrained(Path(folder), backbone)

    def _num_scales(self, name: str) -> int:
        return 1 if name == "unary_1scale" else len(self.pyramid.scales)

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
        return variants_of(self.potential_names)

    def name_of(self, variant: Variant) -> str:
        """What a variant is called in options, logs, tables and pictures.

        Its name in `variants`, or the names of its potentials if it is not there, as
        `unary_1scale+above_below`.
        """
        names = {known: name for name, known in self.variants().items()}
        return names.get(variant, "+".join(variant.potentials))

    def default_variant(self) -> Variant:
        """The unary (if there is one) with every relation of this model, without a dense CRF."""
        return whole_crf(self.potential_names)

    def _relation(self, name: str) -> PairwiseNet:
        network = self.potentials[name]
        assert isinstance(network, PairwiseNet)
        return network

    @property
    def relation_weights(self) -> dict[str, float]:
        """What the energies of each relation are multiplied by in a CRF, by name."""
        relations = self.default_variant().relations
        return {name: self._relation(name).energy_weight for name in relations}

    def set_relation_weights(self, weights: Mapping[str, float]) -> None:
        """Sets some or all of `relation_weights`, each finite and at least 0."""
        known = self.default_variant().relations
        for name, weight in weights.items():
            if name not in known:
                raise ValueError(f"weights: got {name!r}, must be of {', '.join(known)}")
            if not 0 <= weight < math.inf:
                raise ValueError(f"weights: got {weight} of {name}, must be finite, at least 0")
            self._relation(name).energy_weight = weight

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities of the labels of every pixel, [B, K, H, W] float32.

        They are those of `default_variant`: logarithms of what `predict` gives, at least the
        smallest positive float32's. ``nll_loss`` of them is end-to-end training. Networks of other
        rows, such as "unary_1scale", are not run: of a model with them `DistributedDataParallel`
        needs ``find_unused_parameters=True``.

        Args:
            images: RGB [B, 3, H, W], 0..255.
        """
        marginals = self.predict(images, self.default_variant())
        return marginals.clamp(min=torch.finfo(marginals.dtype).tiny).log()

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Piecewise negative log-likelihood of each potential (paper, section 5), scalars.

        Args:
            images: [B, 3, H, W].
            labels: [B, H, W] of any integer dtype, 0..K-1 or 255 = ignore; resized to the node
                grid by nearest neighbour.

        Each is the mean over valid nodes or edges, weighted by `class_weights`; 0 where there is
        none.
        """
        inputs = self.inputs(images)
        return {name: self.loss(name, inputs, labels) for name in self.potential_names}

    def inputs(self, images: Tensor, names: Iterable[str] | None = None) -> list[Tensor]:
        """What the networks of the named potentials (default: all) read, the largest scale first.

        The images at every scale, [B, 3, H_s, W_s]; where blocks 1-5 are shared
        (`ModelConfig.share_blocks`), their maps of these, [B, C, h_s, w_s]. Of a model with a
        backbone, its features of the images.
        """
        count = max(self._num_scales(name) for name in names or self.potential_names)
        scales = self.pyramid(images)[:count]
        if self.backbone is not None:
            return [check_map(self.backbone(scales[0]))]
        if self.blocks is None:
            return scales
        return [self.blocks(scale, index) for index, scale in enumerate(scales)]

    def loss(self, name: str, inputs: list[Tensor], labels: Tensor) -> Tensor:
        """One of `losses`, from what `self.inputs` returned."""
        unary, potential, grid = self._evaluate(name, inputs)
        nodes = checked_node_labels(labels, grid, self.num_classes, IGNORE_INDEX, self.device)
        if potential is None:
            assert unary is not None
            return node_nll(unary, nodes, self.class_weights, IGNORE_INDEX, self.label_smoothing)
        value = edge_nll(potential, nodes, self.class_weights, IGNORE_INDEX)
        return value.float() + 0 * self._relation(name).log_weight  # a gradient of 0, not none

    def loss_count(self, name: str, labels: Tensor) -> Tensor:
        """The nodes, or edges of a relation, that `loss` of these labels is a mean over, float64.

        Each counts as much as it weighs: 1 without `class_weights`.
        """
        if name not in self.config.relations:
            return self.node_count(labels)
        relation, size = self.config.relations[name], self.grid_size(*labels.shape[1:])
        graph = relation_graph(relation, len(labels), *size, labels.device)
        nodes = node_labels(labels, size)
        return edge_weights(graph, nodes, self.class_weights, IGNORE_INDEX).sum()

    def node_count(self, labels: Tensor) -> Tensor:
        """The nodes that have a label other than ignore, by weight, float64."""
        nodes = node_labels(labels, self.grid_size(*labels.shape[1:]))
        return node_weights(nodes, self.class_weights, IGNORE_INDEX).sum()

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of nodes of an image of this size."""
        if self.backbone is not None:
            if (height, width) not in self._map_sizes:
                self._map_sizes[height, width] = map_size(self.backbone, height, width)
            return self._map_sizes[height, width]
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
            raise ValueError("names: got none, must be at least one potential")
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
            raise ValueError(f"potential: got {name!r}, must be one of {self.potential_names}")
        network = self.potentials[name]
        scales = inputs[: self._num_scales(name)]
        if not isinstance(network, PairwiseNet):
            energies = network(scales)
            batch, height, width, _ = energies.shape
            return energies.flatten(0, 2), None, (batch, height, width)
        features = network.features(scales)
        batch, height, width, _ = features.shape
        graph = relation_graph(self.config.relations[name], batch, height, width, features.device)
        return None, network(features.flatten(0, 2), graph), (batch, height, width)

    def crf(
        self, energies: CRFEnergies, variant: str | Variant
    ) -> tuple[Tensor, list[FactoredPotential]]:
        """A variant's unary energies [N, K], zeros where it has none, and pairwise potentials.

        The potentials' energies are times the weights of their relations.
        """
        chosen = self._variant(variant)
        potentials = [
            self._relation(name).weighted(energies.pairwise[name]) for name in chosen.relations
        ]
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
        steps = self.config.iterations if iterations is None else checked_iterations(iterations)
        nodes = log_marginals(unary, potentials, steps).exp()
        grids = nodes.view(batch, height, width, self.num_classes).permute(0, 3, 1, 2)
        return grids.contiguous()  # as channels-last maps they break the gradient of `interpolate`

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
        check_images(images)
        pixels = (images.shape[2], images.shape[3])
        if chosen.dense_crf and size not in (None, pixels):
            raise ValueError(f"size: got {size}, must be the images', {pixels}, with a dense CRF")
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
