"""The layer over the logits of a grid: what it computes and takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from pairwise_layers import RELATIONS, inputs, labels_of, trained
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import deepcrf_ext as dc
from deepcrf_ext.nn import PairwiseCRF

every_relations = pytest.mark.parametrize("relations", RELATIONS)


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
    for factor in (1, 1e-6):  # only their ratios count
        tensor = factor * torch.tensor(weights, dtype=torch.float64)
        found = layer.loss(logits, features, labels, objective, tensor)
        torch.testing.assert_close(found, losses)


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


def test_logits_of_another_precision_than_the_layer() -> None:
    """They are brought into the dtype that the layer sums in, and no narrower one."""
    layer = trained()
    logits, features = inputs()
    labels = labels_of(logits)
    wanted = {"forward": layer(logits, features)}
    for objective in ("piecewise", "pseudo_likelihood"):
        wanted.update(layer.loss(logits, features, labels, objective))
    single = copy.deepcopy(layer).float()
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    for own, given, dtype, context in (
        (layer, features, torch.float32, nullcontext),
        (single, features.float(), torch.float64, nullcontext),
        (single, features.float(), torch.float64, autocast),
    ):
        other = logits.to(dtype)
        with context():
            found = {"forward": own(other, given)}
            for objective in ("piecewise", "pseudo_likelihood"):
                found.update(own.loss(other, given, labels, objective))
        precise = context is nullcontext
        for name, value in found.items():
            assert value.dtype == dtype, name
            rtol, atol = (1e-5, 1e-5) if precise else (0.03, 0.05)
            torch.testing.assert_close(value.double(), wanted[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pseudo_likelihood_does_not_round_the_logits(dtype: torch.dtype) -> None:
    layer = PairwiseCRF(5, 3).to(dtype)
    for weight in layer.relation_weights.values():
        torch.nn.init.zeros_(weight)
    logits, features = inputs(dtype=torch.float32)
    labels = labels_of(logits)
    wanted = functional.cross_entropy(20 * logits, labels, ignore_index=255)
    found = layer.loss(20 * logits, features.to(dtype), labels, "pseudo_likelihood")
    torch.testing.assert_close(found["pseudo_likelihood"], wanted)
