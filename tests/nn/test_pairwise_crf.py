"""The layer over the logits of a grid: what it computes, takes and refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwiseCRF, RelationConfig

RELATIONS = {
    "paper": ("surrounding", "above_below"),
    "own": {
        "near": dc.RangeBox(-1, 1, -1, 1),
        "beside": RelationConfig("left_right", 0.5, 0.3),
        "far": RelationConfig("surrounding", 0.9, 0.9, step=2),
    },
    "none": (),
}

every_relations = pytest.mark.parametrize("relations", RELATIONS)


def trained(relations: Any = RELATIONS["paper"], **options: Any) -> PairwiseCRF:
    """A layer of 5 channels and 3 labels in float64 whose potentials say something."""
    torch.manual_seed(0)
    layer = PairwiseCRF(5, 3, relations, hidden=6, **options).double()
    for index, (name, potential) in enumerate(layer.potentials.items()):
        torch.nn.init.normal_(potential.weight)
        torch.nn.init.normal_(potential.bias)
        torch.nn.init.constant_(layer.relation_weights[name], 0.1 + 0.2 * index)
    return layer


def inputs(
    batch: int = 2, height: int = 5, width: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(batch + 10 * height + width)
    logits = torch.randn(batch, 3, height, width, generator=random, dtype=torch.float64)
    features = torch.randn(batch, 5, height, width, generator=random, dtype=torch.float64)
    return logits.to(dtype), features.to(dtype)


def labels_of(logits: Tensor, ignored: float = 0.2) -> Tensor:
    random = torch.Generator().manual_seed(1)
    batch, classes, *size = logits.shape
    labels = torch.randint(classes, (batch, *size), generator=random)
    labels[torch.rand(labels.shape, generator=random) < ignored] = 255
    return labels


def by_hand(
    layer: PairwiseCRF, logits: Tensor, features: Tensor, weighted: bool = True
) -> tuple[Tensor, dict[str, dc.TablePotential]]:
    """Unary energies and tables of the batch, from the raw parameters and a graph an image."""
    batch, _, height, width = logits.shape
    unary = -torch.cat([image.flatten(1).T for image in logits])
    nodes = torch.cat([image.flatten(1).T for image in features])
    tables = {}
    for name, relation in layer.relations.items():
        one = dc.EdgeGraph.from_range_box(height, width, relation.box(height, width))
        graph = dc.EdgeGraph.batch([one] * batch)
        p, q = graph.edge_index()
        net = layer.potentials[name]
        hidden = (net.source(nodes)[p] + net.target(nodes)[q]).relu()
        energies = torch.einsum("kjd,ed->ekj", net.weight, hidden) + net.bias
        scale = layer.relation_weights[name] if weighted else 1
        tables[name] = dc.TablePotential(graph, scale * energies)
    return unary, tables


@every_relations
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_agrees_with_mean_field_on_potentials_built_by_hand(
    relations: str, iterations: int
) -> None:
    layer = trained(RELATIONS[relations], iterations=iterations)
    logits, features = inputs()
    unary, tables = by_hand(layer, logits, features)
    marginals = dc.mean_field(unary, list(tables.values()), iterations)
    found = layer(logits, features)
    assert found.is_contiguous()
    torch.testing.assert_close(found.exp().permute(0, 2, 3, 1).flatten(0, 2), marginals)
    slow = oracle.mean_field(
        oracle.array(unary), [oracle.edges(table) for table in tables.values()], iterations
    )
    np.testing.assert_allclose(oracle.array(marginals), slow)


def test_one_update_of_two_nodes_is_near_the_exact_marginal_where_energies_are_small() -> None:
    """Mean field is exact to first order in the pairwise energies."""
    layer = trained({"below": dc.RangeBox(1, 1, 0, 0)}, iterations=20)
    torch.nn.init.constant_(layer.relation_weights["below"], 0.01)
    logits, features = inputs(1, 4, 1)
    unary, tables = by_hand(layer, logits, features)
    joint = oracle.joint_probabilities(oracle.array(unary), oracle.edges(tables["below"]))
    exact = [joint.sum(axis=tuple(a for a in range(4) if a != node)) for node in range(4)]
    independent = oracle.softmax(oracle.array(unary))
    found = layer(logits, features).exp()[0, :, :, 0].T
    error = np.abs(oracle.array(found) - exact).max()
    assert error < 0.05 * np.abs(independent - exact).max()


@every_relations
def test_piecewise_loss_is_the_likelihood_of_each_potential_alone(relations: str) -> None:
    layer = trained(RELATIONS[relations])
    logits, features = inputs()
    labels = labels_of(logits)
    unary, tables = by_hand(layer, logits, features, weighted=False)
    losses = layer.loss(logits, features, labels)
    assert list(losses) == ["unary", *layer.relations]
    nodes = labels.flatten()
    wanted = functional.cross_entropy(-unary, nodes, ignore_index=255)
    torch.testing.assert_close(losses["unary"], wanted)
    for name, table in tables.items():
        nll = oracle.pairwise_nll(oracle.edges(table), nodes.tolist(), 255)
        assert losses[name].item() == pytest.approx(nll[nll != 0].mean())


@every_relations
def test_pseudo_likelihood_is_that_of_the_weighted_crf(relations: str) -> None:
    layer = trained(RELATIONS[relations])
    logits, features = inputs()
    labels = labels_of(logits)
    unary, tables = by_hand(layer, logits, features)
    losses = layer.loss(logits, features, labels, objective="pseudo_likelihood")
    edge_lists = [oracle.edges(table) for table in tables.values()]
    nll = oracle.pseudo_likelihood_nll(
        oracle.array(unary), edge_lists, labels.flatten().tolist(), 255
    )
    assert list(losses) == ["pseudo_likelihood"]
    assert losses["pseudo_likelihood"].item() == pytest.approx(nll[nll != 0].mean())


@pytest.mark.parametrize("objective", ["piecewise", "pseudo_likelihood"])
def test_class_weights_weigh_nodes_by_label_and_edges_by_both(objective: str) -> None:
    layer = trained()
    logits, features = inputs()
    labels = labels_of(logits)
    weights = [1.0, 0.0, 4.0]
    losses = layer.loss(logits, features, labels, objective, class_weights=weights)
    unary, tables = by_hand(layer, logits, features, weighted=objective != "piecewise")
    nodes = labels.flatten().tolist()
    of_node = np.array([0 if label == 255 else weights[label] for label in nodes])
    if objective == "piecewise":
        values = {"unary": oracle.pseudo_likelihood_nll(oracle.array(unary), [], nodes, 255)}
        counts = {"unary": of_node}
        for name, table in tables.items():
            p, q = table.graph.edge_index().numpy()
            values[name] = oracle.pairwise_nll(oracle.edges(table), nodes, 255)
            counts[name] = np.sqrt(of_node[p] * of_node[q])
    else:
        edge_lists = [oracle.edges(table) for table in tables.values()]
        nll = oracle.pseudo_likelihood_nll(oracle.array(unary), edge_lists, nodes, 255)
        values, counts = {objective: nll}, {objective: of_node}
    for name, value in values.items():
        wanted = (value * counts[name]).sum() / counts[name].sum()
        assert losses[name].item() == pytest.approx(wanted)
    tensor = layer.loss(logits, features, labels, objective, torch.tensor(weights))
    torch.testing.assert_close(tensor, losses)


def test_labels_of_images_are_resized_by_nearest_neighbour() -> None:
    layer = trained()
    logits, features = inputs()
    random = torch.Generator().manual_seed(3)
    for size in ((40, 48), (13, 7), (5, 12), (3, 2)):
        labels = torch.randint(3, (2, *size), generator=random)
        nearest = functional.interpolate(labels[:, None].double(), (5, 6), mode="nearest-exact")
        found = layer.loss(logits, features, labels)
        torch.testing.assert_close(found, layer.loss(logits, features, nearest[:, 0].long()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    layer = trained()
    logits, features = inputs()
    labels = labels_of(logits)
    found = layer.loss(logits, features, labels.to(dtype))
    torch.testing.assert_close(found, layer.loss(logits, features, labels))


@pytest.mark.parametrize("ignored", [-100, 0, 255])
def test_ignored_pixels_do_not_count_whatever_their_logits(ignored: int) -> None:
    layer = trained(ignore_index=ignored)
    logits, features = inputs()
    labels = labels_of(logits)
    labels[labels == 255] = ignored
    for objective in ("piecewise", "pseudo_likelihood"):
        wanted = layer.loss(logits, features, labels, objective)
        other = logits + 9 * (labels == ignored)[:, None] * torch.randn_like(logits)
        found = layer.loss(other, features, labels, objective)
        torch.testing.assert_close(found, wanted)
    everything = torch.full_like(labels, ignored)
    losses = layer.loss(logits, features, everything)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]


def test_images_of_a_batch_do_not_see_one_another() -> None:
    layer = trained()
    logits, features = inputs(batch=3)
    alone = [layer(logits[i : i + 1], features[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(layer(logits, features), torch.cat(alone))
    assert not torch.allclose(alone[0], alone[1])


def test_a_fresh_layer_is_close_to_the_unary_and_all_of_it_learns() -> None:
    torch.manual_seed(0)
    layer = PairwiseCRF(32, 21)
    logits, features = 3 * torch.randn(1, 21, 24, 30), torch.randn(1, 32, 24, 30)
    found = layer(logits, features)
    torch.testing.assert_close(found, logits.log_softmax(1), rtol=0, atol=0.01)
    functional.nll_loss(found, torch.zeros(1, 24, 30, dtype=torch.int64)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_rows_are_log_probabilities_with_finite_gradients_where_the_network_is_sure() -> None:
    layer = trained().float()
    logits, features = inputs(dtype=torch.float32)
    logits = (200 * logits).requires_grad_()
    found = layer(logits, features)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 5, 6))
    assert found.min() < math.log(torch.finfo(torch.float32).tiny)  # its marginal is 0
    functional.nll_loss(found, logits.argmin(1)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("objective", ["forward", "piecewise", "pseudo_likelihood"])
def test_gradients_agree_with_finite_differences(objective: str) -> None:
    layer = trained()
    logits, features = inputs(1, 3, 4)
    labels = labels_of(logits)

    def value(logits: Tensor, features: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        arguments = (logits, features, labels, objective)
        return torch.func.functional_call(_Called(layer), state, arguments)

    names = [name for name, _ in _Called(layer).named_parameters()]
    tensors = [logits, features, *(parameter.detach() for parameter in layer.parameters())]
    assert torch.autograd.gradcheck(value, [t.clone().requires_grad_() for t in tensors])


class _Called(torch.nn.Module):
    """A layer's output, or the sum of its losses, as a forward pass."""

    def __init__(self, layer: PairwiseCRF) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, logits: Tensor, features: Tensor, labels: Tensor, wanted: str) -> Tensor:
        if wanted == "forward":
            return self.layer(logits, features)
        return sum(self.layer.loss(logits, features, labels, wanted).values())


@pytest.mark.parametrize("wrap", [torch.no_grad, torch.inference_mode])
def test_prediction_is_that_of_training(wrap: Callable[[], Any]) -> None:
    layer = trained()
    logits, features = inputs()
    wanted = layer(logits, features)
    with wrap():
        found = layer.eval()(logits, features)
    torch.testing.assert_close(found, wanted.detach())


def test_layouts_and_checkpoints_change_nothing() -> None:
    layer = trained()
    logits, features = inputs()
    wanted = layer(logits, features)
    strided = torch.stack([logits, logits], -1)[..., 0]
    for layout in (torch.channels_last, torch.contiguous_format):
        other = features.contiguous(memory_format=layout)
        torch.testing.assert_close(layer(strided, other), wanted)
        torch.testing.assert_close(layer(logits.contiguous(memory_format=layout), other), wanted)
    features.requires_grad_()
    saved = checkpoint(layer, logits, features, use_reentrant=False)
    found = torch.autograd.grad(saved.square().sum(), [features, *layer.parameters()])
    expected = torch.autograd.grad(
        layer(logits, features).square().sum(), [features, *layer.parameters()]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(0, 4, 5), (2, 1, 1), (1, 1, 7), (3, 6, 1)])
def test_batches_without_an_image_and_grids_of_a_line(size: tuple[int, int, int]) -> None:
    layer = trained()
    logits, features = inputs(*size)
    found = layer(logits, features)
    assert found.shape == (size[0], 3, *size[1:])
    losses = layer.loss(logits, features, torch.zeros(size, dtype=torch.int64))
    (found.sum() + sum(losses.values())).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_one_class_is_certain() -> None:
    layer = PairwiseCRF(5, 1)
    logits, features = torch.randn(2, 1, 4, 5), torch.randn(2, 5, 4, 5)
    assert torch.equal(layer(logits, features), torch.zeros(2, 1, 4, 5))
    losses = layer.loss(logits, features, torch.zeros(2, 4, 5, dtype=torch.int64))
    assert all(loss == 0 for loss in losses.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_autocast_give_float32(dtype: torch.dtype) -> None:
    layer = trained()
    logits, features = inputs()
    labels = labels_of(logits)
    wanted, losses = layer(logits, features), layer.loss(logits, features, labels)
    assert wanted.dtype == torch.float64
    layer.float()
    narrow = copy.deepcopy(layer).to(dtype)
    results = {"narrow": narrow(logits.to(dtype), features.to(dtype))}
    with torch.autocast("cpu", dtype):
        results["autocast"] = layer(logits.float(), features.float())
        results["of a network in autocast"] = layer(logits.to(dtype), features.to(dtype))
        autocast_losses = layer.loss(logits.float(), features.float(), labels)
    for name, found in results.items():
        assert found.dtype == torch.float32
        error = (found.exp() - wanted.exp()).abs().max()
        assert error < 0.02, (name, error)
    for name, loss in autocast_losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(losses[name].item(), rel=0.02)


def test_state_is_keyed_by_the_name_of_the_relation() -> None:
    relations = {"near": dc.RangeBox(-1, 1, -1, 1), "far": dc.RangeBox(-3, 3, -3, 3)}
    layer = trained(relations)
    other = PairwiseCRF(5, 3, dict(reversed(relations.items())), hidden=6).double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(*inputs()), layer(*inputs()))
    assert all("near" in key or "far" in key for key in layer.state_dict())
    assert {"relation_weights.near", "potentials.far.source.weight"} <= layer.state_dict().keys()


def test_copies_of_every_kind_compute_the_same() -> None:
    layer = trained()
    logits, features = inputs()
    wanted = layer(logits, features)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = PairwiseCRF(5, 3, hidden=6).double()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for same in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(logits, features), wanted)


def test_reset_parameters_starts_anew() -> None:
    layer = trained()
    layer.reset_parameters()
    assert {weight.item() for weight in layer.relation_weights.values()} == {0.01}
    logits, features = inputs()
    torch.testing.assert_close(layer(logits, features), logits.log_softmax(1), rtol=0, atol=0.01)


def test_repr_names_the_settings() -> None:
    text = repr(PairwiseCRF(5, 3))
    assert "relations=('surrounding', 'above_below'), iterations=3, ignore_index=255" in text


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"logits": torch.zeros(2, 4, 5, 6)}, ValueError, r"logits: got .*4, 5, 6.*K = 3"),
        ({"logits": torch.zeros(3, 5, 6)}, ValueError, "logits: got shape"),
        ({"logits": torch.zeros(2, 3, 0, 6)}, ValueError, "logits: got shape"),
        ({"logits": torch.zeros(2, 3, 5, 6).long()}, TypeError, "logits: got dtype torch.int64"),
        ({"logits": None}, TypeError, "logits: got NoneType"),
        ({"features": torch.zeros(2, 4, 5, 6)}, ValueError, "features: got .*C = 5"),
        ({"features": torch.zeros(2, 5, 10, 12)}, ValueError, "features: got .*h = 5, w = 6"),
        ({"features": torch.zeros(1, 5, 5, 6)}, ValueError, "features: got .*B = 2"),
        ({"features": torch.zeros(2, 5, 5, 6).half()}, TypeError, "features: got dtype"),
        ({"labels": torch.zeros(2, 1, 5, 6).long()}, ValueError, "labels: got shape"),
        ({"labels": torch.zeros(3, 5, 6).long()}, ValueError, "labels: got shape.*B = 2"),
        ({"labels": torch.zeros(2, 5, 6)}, TypeError, "labels: got dtype torch.float32"),
        ({"labels": torch.full((2, 5, 6), 7)}, ValueError, "labels: got 7"),
        ({"objective": "likelihood"}, ValueError, "objective: got 'likelihood', must be one of"),
        ({"class_weights": [1.0, 2.0]}, ValueError, "class_weights: got shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    changed: dict[str, Any], error: type[Exception], named: str
) -> None:
    layer = PairwiseCRF(5, 3)
    logits, features = inputs(dtype=torch.float32)
    arguments = {"logits": logits, "features": features, "labels": labels_of(logits), **changed}
    with pytest.raises(error, match=named):
        layer.loss(**arguments)
    if changed.keys() & {"logits", "features"}:
        with pytest.raises(error, match=named):
            layer(arguments["logits"], arguments["features"])


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"iterations": -1}, ValueError, "iterations: got -1"),
        ({"iterations": 2.0}, TypeError, "iterations"),
        ({"ignore_index": None}, TypeError, "ignore_index: got NoneType"),
        ({"hidden": 0}, ValueError, "hidden: got 0"),
        ({"relations": ["beside"]}, ValueError, "relations: got 'beside'"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        PairwiseCRF(5, 3, **settings)


def test_a_grid_too_large_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcrf_ext.nn.grid_graphs.available_memory", lambda _: 1 << 34)
    layer = PairwiseCRF(1, 2, hidden=1)
    with pytest.raises(dc.InputError, match="1,065,279,600 edges"):
        layer(torch.zeros(1, 2, 300, 300), torch.zeros(1, 1, 300, 300))
