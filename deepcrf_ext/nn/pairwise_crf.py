"""Layer `PairwiseCRF`: label context for the logits of any network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deepcrf_ext.nn.calibration import Calibration, fit_weights
from deepcrf_ext.nn.grid_graphs import relation_graph
from deepcrf_ext.nn.node_losses import (
    checked_node_labels,
    edge_nll,
    node_nll,
    node_weights,
    weighted_mean,
)
from deepcrf_ext.nn.pairwise_potential import PairwisePotential, check_features
from deepcrf_ext.nn.relations import Relation, RelationConfig, RelationWeights, named_relations
from deepcrf_ext.ops._autocast import accumulate_dtype
from deepcrf_ext.ops._flat_tensors import HALVES, graph_tensors, potential_tensors
from deepcrf_ext.ops._number_checks import checked_int, checked_iterations
from deepcrf_ext.ops._tensor_checks import are_seen, check_device, check_floating, check_tensor
from deepcrf_ext.ops.mean_field import mean_field
from deepcrf_ext.ops.pairwise_messages import messages
from deepcrf_ext.ops.potentials import FactoredPotential, Potential
from deepcrf_ext.ops.pseudo_likelihood import pseudo_likelihood_nll

OBJECTIVES = ("piecewise", "pseudo_likelihood")


class PairwiseCRF(nn.Module):
    """A CRF over the grid of a network's logits, whose pairwise energies are networks of features.

    Unary energies are ``-logits``. Each relation joins every node of the grid to the nodes in a box
    around it, by a `PairwisePotential` of the two nodes' features (arXiv:1504.01013v2), times a
    weight. The result of mean field replaces ``log_softmax(logits)``.

    Training, what gains most: first the sum of `loss`, with the logits' network or after it; then
    ``nll_loss`` of the layer's output, end to end, which trains the weights of the relations too.
    Piecewise training alone leaves the weights where they are; `calibrate` fits them.

    Args:
        in_channels: C, channels of the features.
        num_classes: K, labels. Of a network with one logit l for the foreground they are two, and
            the logits ``torch.cat([torch.zeros_like(l), l], 1)``.
        relations: names out of "surrounding", "above_below" and "left_right", or a dictionary from
            names of one's own to `RelationConfig` (a box in fractions of the grid's short side) or
            `RangeBox` (a box in nodes). Names may not be "unary" nor hold a dot.
        hidden: width of each potential's hidden layer.
        iterations: mean-field updates.
        ignore_index: label of pixels that count in no loss.

    Attributes:
        potentials: the `PairwisePotential` of each relation by name.
        relation_weights: the weight of each relation by name, parameters of shape []. They multiply
            energies in `forward` and in the pseudo-likelihood, and are started at 0.01: a node has
            tens to hundreds of edges whose energies add up, and a fresh layer gives close to
            ``log_softmax(logits)``. They may take any sign: a negative one turns a relation's
            energies round. Their gradients sum over edges too: Adam's steps of 1e-3 suit them, but
            plain SGD wants a rate some hundred times lower than that of the rest.
        relations: the `RelationConfig` of each relation by name.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> from deepcrf_ext import nn as crf
        >>> layer = crf.PairwiseCRF(in_channels=16, num_classes=5)
        >>> logits, features = torch.randn(2, 5, 12, 15), torch.randn(2, 16, 12, 15)
        >>> labels = torch.randint(5, (2, 96, 120))
        >>> losses = layer.loss(logits, features, labels)
        >>> sorted(losses)
        ['above_below', 'surrounding', 'unary']
        >>> sum(losses.values()).backward()
        >>> log_marginals = layer(logits, features)
        >>> log_marginals.shape
        torch.Size([2, 5, 12, 15])
        >>> whole = F.interpolate(log_marginals, (96, 120), mode="bilinear")
        >>> F.nll_loss(whole, labels, ignore_index=255).backward()
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        relations: Sequence[str] | Mapping[str, Relation] = ("surrounding", "above_below"),
        hidden: int = 128,
        iterations: int = 3,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.in_channels = checked_int("in_channels", in_channels, at_least=1)
        self.num_classes = checked_int("num_classes", num_classes, at_least=1)
        self.iterations = checked_iterations(iterations)
        self.ignore_index = checked_int("ignore_index", ignore_index)
        self.relations: dict[str, RelationConfig] = named_relations(relations)
        self.potentials = nn.ModuleDict(
            {name: PairwisePotential(in_channels, num_classes, hidden) for name in self.relations}
        )
        self.relation_weights = RelationWeights(self.relations)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, and starts the weights small again."""
        for _, potential in self._networks():
            potential.reset_parameters()
        self.relation_weights.reset_parameters()

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Log-marginals of mean field.

        Args:
            logits: [B, K, h, w], floating point; energies are their negatives.
            features: [B, C, h, w], in the dtype of the layer (under autocast in any,
                except from or to float64).

        Returns:
            [B, K, h, w], contiguous, log-probabilities over the K labels; float64 for float64
            logits, else float32. The last update is made in log space, so that a label whose
            marginal is next to 0 has a finite loss and a gradient.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
            InputError: the graph of a relation would take too much memory.
        """
        self._check(logits, features)
        potentials = [
            potential.scaled(self.relation_weights[name])
            for name, potential in self._evaluate(features).items()
        ]
        nodes = log_marginals(_unary(logits), potentials, self.iterations)
        grids = nodes.unflatten(0, (logits.shape[0], *logits.shape[2:]))
        return grids.permute(0, 3, 1, 2).contiguous()

    def loss(
        self,
        logits: Tensor,
        features: Tensor,
        labels: Tensor,
        objective: str = "piecewise",
        class_weights: Tensor | Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        """Losses without inference, scalars to be summed.

        "piecewise": every potential by its own likelihood (paper, section 5), each at weight 1.
        "unary" is the cross-entropy of the logits, the term of the unary potential: it trains the
        network that made them. Leave it out of the sum where that is trained otherwise. Each
        further entry, a relation's, is the mean of `pairwise_nll` over its edges.

        "pseudo_likelihood": every node's label given the true labels of all others (paper,
        appendix), in one entry of that name; logits, potentials and weights train together.

        Args:
            logits: [B, K, h, w].
            features: [B, C, h, w].
            labels: [B, h, w], or [B, H, W] of any size, which is resized to h x w by nearest
                neighbour; any integer dtype, 0..K-1 or `ignore_index`.
            objective: "piecewise" or "pseudo_likelihood".
            class_weights: [K], how much each class counts, at least 0: a node as its label, an edge
                as the geometric mean of its two labels. Default: all the same.

        Returns:
            Means over valid nodes or edges, float32 or float64 as `forward`; 0 where none is valid.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
            InputError: the graph of a relation would take too much memory.
        """
        if not (isinstance(objective, str) and objective in OBJECTIVES):
            raise ValueError(
                f"objective: got {objective!r}, must be one of {', '.join(OBJECTIVES)}"
            )
        self._check(logits, features)
        weights = self._class_weights(class_weights, logits.device)
        nodes = self._nodes(labels, logits)
        unary = _unary(logits)
        ignore = self.ignore_index
        potentials = self._evaluate(features)
        if objective == "piecewise":
            losses = {"unary": node_nll(unary, nodes, weights, ignore)}
            for name, potential in potentials.items():
                nll = edge_nll(potential, nodes, weights, ignore)
                # The weight takes no part; a gradient of 0 lets DistributedDataParallel, which
                # waits for every parameter's, work unasked.
                losses[name] = (nll + 0 * self.relation_weights[name]).to(unary.dtype)
            return losses
        scaled = [p.scaled(self.relation_weights[name]) for name, p in potentials.items()]
        energies, precision = _beside(unary, scaled)
        with precision:
            values = pseudo_likelihood_nll(energies, scaled, nodes, ignore, reduction="none")
        counts = node_weights(nodes, weights, ignore)
        return {"pseudo_likelihood": weighted_mean(values.to(unary.dtype), counts)}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Calibration:
        """Fits the weights of the relations to held-out data, by the likelihood of its labels.

        Nothing else changes. See `deepcrf_ext.nn.calibration` for the search: some ten to thirty
        passes over the data, without gradients.

        Args:
            batches: (logits, features, labels) as `loss` takes them, on any device; a list or a
                `DataLoader`. What can be iterated over but once is kept in memory.

        Returns:
            ``before`` and ``after``, the mean of ``-log marginal`` over labelled nodes;
            ``after <= before``.

        Raises:
            TypeError, ValueError: a batch does not fit, no node is labelled, or the likelihood is
                not finite at any weight; the message says so.
        """
        try:
            kept = list(batches) if iter(batches) is batches else batches
        except TypeError:
            got = type(batches).__name__
            raise TypeError(f"batches: got {got}, must be a list or a DataLoader") from None
        weights = {name: weight.item() for name, weight in self.relation_weights.items()}
        weights, result = fit_weights(weights, lambda several: self._nll(kept, several))
        for name, weight in weights.items():
            self.relation_weights[name].fill_(weight)
        return result

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, num_classes={self.num_classes}, "
            f"relations={tuple(self.relations)}, iterations={self.iterations}, "
            f"ignore_index={self.ignore_index}"
        )

    def _nll(
        self,
        batches: Iterable[tuple[Tensor, Tensor, Tensor]],
        several: Sequence[Mapping[str, float]],
    ) -> list[float]:
        """-log marginal of the labels, mean over labelled nodes, under each of several weights."""
        sums, count = torch.zeros(len(several), dtype=torch.float64, device="cpu"), 0
        for batch in batches:
            if not isinstance(batch, (list, tuple)) or len(batch) != 3:
                raise TypeError(
                    f"batches: got a batch of {type(batch).__name__}, must be of (logits, "
                    "features, labels)"
                )
            for name, value in zip(("logits", "features", "labels"), batch, strict=True):
                if not isinstance(value, Tensor):
                    raise TypeError(f"{name}: got {type(value).__name__}, must be a torch.Tensor")
            logits, features, labels = batch
            device = next(self.parameters()).device if self.relations else logits.device
            logits, features, labels = (t.to(device) for t in (logits, features, labels))
            self._check(logits, features)
            nodes = self._nodes(labels, logits)
            count += int((nodes != self.ignore_index).sum())
            unary, potentials = _unary(logits), self._evaluate(features)
            for index, weights in enumerate(several):
                scaled = [p.scaled(weights[name]) for name, p in potentials.items()]
                logs = log_marginals(unary, scaled, self.iterations)
                sums[index] += nn.functional.nll_loss(
                    logs, nodes, ignore_index=self.ignore_index, reduction="sum"
                ).item()
        if count == 0:
            raise ValueError("batches: got no labelled node, must hold at least one")
        return (sums / count).tolist()

    def _networks(self) -> list[tuple[str, PairwisePotential]]:
        return list(self.potentials.items())  # type: ignore[arg-type]

    def _evaluate(self, features: Tensor) -> dict[str, FactoredPotential]:
        """The potential of every relation, its weight not yet applied."""
        batch, _, height, width = features.shape
        nodes = features.permute(0, 2, 3, 1).flatten(0, 2)
        return {
            name: network(
                nodes,
                relation_graph(self.relations[name], batch, height, width, features.device),
            )
            for name, network in self._networks()
        }

    def _check(self, logits: Tensor, features: Tensor) -> None:
        sizes = {"K": self.num_classes}
        if isinstance(logits, Tensor) and logits.dim() == 4:
            sizes["B"] = logits.shape[0]  # may be 0
        check_tensor("logits", logits, "B K h w", sizes)
        check_floating("logits", logits)
        sizes["C"] = self.in_channels
        check_tensor("features", features, "B C h w", sizes)
        check_device("features", features.device, logits.device, "logits")
        for _, network in self._networks():
            check_features(features, network.weight)

    def _nodes(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels at the nodes, int64 [N]."""
        grid = (logits.shape[0], *logits.shape[2:])
        return checked_node_labels(labels, grid, self.num_classes, self.ignore_index, logits.device)

    def _class_weights(
        self, weights: Tensor | Sequence[float] | None, device: torch.device
    ) -> Tensor | None:
        if weights is None:
            return None
        try:
            numbers = torch.as_tensor(weights, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"class_weights: got {weights!r}, must be {self.num_classes} numbers"
            ) from None
        check_tensor("class_weights", numbers, "K", {"K": self.num_classes})
        if are_seen(numbers):
            sound = (numbers >= 0) & (numbers < torch.inf)
            if not sound.all():
                bad = numbers[~sound][0].item()
                raise ValueError(f"class_weights: got {bad}, must be finite and at least 0")
        return numbers


def log_marginals(unary: Tensor, potentials: Sequence[Potential], iterations: int) -> Tensor:
    """Logarithms of `mean_field`'s marginals, [N, K], float64 for float64 energies, else float32.

    The last update stays in log space: a marginal may be 0, its logarithm is finite all the same.
    The potentials share a dtype, which may be another than that of the unary energies.
    """
    energies, precision = _beside(unary, potentials)
    if iterations and potentials:
        with precision:
            marginals = mean_field(energies, potentials, iterations - 1)
        for potential in potentials:
            own = potential_tensors(potential)
            energies = energies + messages(graph_tensors(potential.graph), own, marginals, False)
    return (-energies).log_softmax(1).to(accumulate_dtype(unary.dtype))


def _beside(unary: Tensor, potentials: Sequence[Potential]) -> tuple[Tensor, torch.autocast]:
    """Unary energies in the dtype that potentials sum in, and in which context both go together.

    Under autocast to the dtype of the potentials, nothing else needs to be rounded to it.
    """
    dtype = potentials[0].dtype if potentials else unary.dtype
    precision = torch.autocast(unary.device.type, dtype, enabled=dtype in HALVES)
    return unary.to(accumulate_dtype(dtype)), precision


def _unary(logits: Tensor) -> Tensor:
    """Unary energies [N, K], float32 or float64."""
    return -logits.permute(0, 2, 3, 1).flatten(0, 2).to(accumulate_dtype(logits.dtype))
