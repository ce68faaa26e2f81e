"""The deep CRF against what it is built from, written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from deepcrf_ext import EdgeGraph, RangeBox, reference
from deepcrf_ext.config import ModelConfig, RelationConfig
from deepcrf_ext.errors import InputError
from deepcrf_ext.models import VARIANTS, DeepCRF, Variant
from deepcrf_ext.nn.grid_graphs import relation_graph

K = 4
TINY = ModelConfig(
    widths=(4, 6), convs=(1, 1), pooled_blocks=2, head_widths=(5,), hidden=8, potentials="all"
)


@pytest.fixture
def model() -> DeepCRF:
    torch.manual_seed(0)
    return DeepCRF(TINY, K).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 30, 26, generator=torch.Generator().manual_seed(1)) * 255


def test_networks_share_nothing(model):
    assert model.potential_names == ("unary", "unary_1scale", "surrounding", "above_below")
    owned = [id(p) for network in model.potentials.values() for p in network.parameters()]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_fresh_relations_are_drawn_as_layers_on_both_nodes(model):
    network = model.potentials["above_below"]
    bound = (2 * network.in_channels) ** -0.5
    for parameter in (network.source.weight, network.target.weight, network.source.bias):
        assert 0.7 * bound < parameter.abs().max() <= bound
    for parameter in (network.weight, network.bias):
        assert 0.7 < parameter.abs().max() * network.hidden**0.5 <= 1


def test_images_have_three_channels(model):
    for size in ((2, 4, 30, 26), (3, 30, 26)):
        with pytest.raises(ValueError, match=r"images: got shape .*, must be \[B, 3, H, W\]"):
            model(torch.zeros(size))


def test_images_lie_where_the_model_does(model):
    with pytest.raises(ValueError, match="images: got device meta, must be cpu as the model"):
        model(torch.zeros(2, 3, 30, 26, device="meta"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(model, images, dtype):
    labels = torch.randint(K, (2, 30, 26))
    labels[:, :9] = 255 if dtype == torch.uint8 else 0
    assert model.losses(images, labels.to(dtype)) == model.losses(images, labels)


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (torch.zeros(2, 30, 26), TypeError, "labels: got dtype torch.float32"),
        (torch.zeros(1, 30, 26).long(), ValueError, r"labels: got shape .* with B = 2"),
        (torch.zeros(2, 1, 30, 26).long(), ValueError, r"labels: got shape"),
        (torch.full((2, 30, 26), K), ValueError, "labels: got 4 at node 0, must be in 0..3 or"),
        (torch.full((2, 30, 26), -1), ValueError, "labels: got -1 at node 0"),
        (None, TypeError, "labels: got NoneType"),
    ],
)
def test_labels_that_do_not_fit_are_named(model, images, labels, error, match):
    with pytest.raises(error, match=match):
        model.losses(images, labels)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((None, K), TypeError, "config: got NoneType, must be a ModelConfig"),
        ((TINY, 0), ValueError, "num_classes: got 0, must be 1 to 255"),
        ((TINY, 256), ValueError, "num_classes: got 256, must be 1 to 255"),
        ((TINY, 2.5), TypeError, "num_classes: got float, must be an int"),
    ],
)
def test_settings_that_do_not_fit_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        DeepCRF(*arguments)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"unary": 1.0}, "weights: got 'unary', must be of surrounding, above_below"),
        ({"surrounding": -0.1}, "weights: got -0.1 of surrounding, must be finite, at least 0"),
        ({"surrounding": float("nan")}, "weights: got nan of surrounding"),
        ({"above_below": float("inf")}, "weights: got inf of above_below"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, weights, match):
    with pytest.raises(ValueError, match=match):
        model.set_relation_weights(weights)


@pytest.mark.parametrize("size", [(30, 26), (1, 7), (33, 64)])
def test_the_grid_is_known_without_a_run(model, size):
    assert model.energies(torch.zeros(1, 3, *size)).grid == (1, *model.grid_size(*size))


def test_a_number_of_iterations_that_is_none_is_named(model, images):
    energies = model.energies(images)
    for variant in ("unary-3scales", "1unary+2pair"):
        with pytest.raises(ValueError, match="iterations: got -1, must be at least 0"):
            model.marginals(energies, variant, iterations=-1)


def test_pairwise_network_is_a_perceptron_on_concatenated_features(model, images):
    pyramid = model.pyramid(images)
    network = model.potentials["above_below"]
    energies = model.energies(images, ["above_below"])
    potential = energies.pairwise["above_below"]
    features = network.features(pyramid).flatten(0, 2)
    first, second = potential.graph.edge_index()
    pairs = torch.cat([features[first], features[second]], dim=1)
    weight = torch.cat([network.source.weight, network.target.weight], dim=1)
    hidden = functional.linear(pairs, weight, network.source.bias).relu()
    expected = functional.linear(hidden, network.weight.flatten(0, 1), network.bias.flatten())
    torch.testing.assert_close(potential.energies().flatten(1), expected)


def test_nodes_are_image_by_image_row_by_row(model, images):
    whole = model.energies(images)
    batch, height, width = whole.grid
    assert (batch, height, width) == (2, 9, 8)
    for index in range(2):
        single = model.energies(images[index : index + 1])
        nodes = slice(index * height * width, (index + 1) * height * width)
        torch.testing.assert_close(whole.unaries["unary"][nodes], single.unaries["unary"])
        potential = whole.pairwise["surrounding"]
        one = single.pairwise["surrounding"]
        edges = slice(index * one.graph.num_edges, (index + 1) * one.graph.num_edges)
        torch.testing.assert_close(potential.energies()[edges], one.energies())


def test_losses_are_the_piecewise_likelihoods(model, images):
    labels = torch.randint(0, K, (2, 30, 26), generator=torch.Generator().manual_seed(2))
    labels[:, :9] = 255
    losses = model.losses(images, labels)
    energies = model.energies(images)
    _, height, width = energies.grid
    rows = ((torch.arange(height) + 0.5) * 30 / height).long()
    columns = ((torch.arange(width) + 0.5) * 26 / width).long()
    nodes = labels[:, rows][:, :, columns].flatten()
    assert (nodes == 255).any()
    for name, unary in energies.unaries.items():
        expected = functional.cross_entropy(-unary, nodes, ignore_index=255)
        torch.testing.assert_close(losses[name], expected)
    for name, potential in energies.pairwise.items():
        first, second = potential.graph.edge_index()
        valid = (nodes[first] != 255) & (nodes[second] != 255)
        pair = nodes[first][valid] * K + nodes[second][valid]
        expected = functional.cross_entropy(-potential.energies()[valid].flatten(1), pair)
        torch.testing.assert_close(losses[name], expected)


def test_each_loss_trains_its_own_network_alone(model, images):
    labels = torch.zeros(2, 30, 26, dtype=torch.int64)
    for index, loss in enumerate(model.losses(images, labels).values()):
        model.zero_grad()
        loss.backward()
        for other, network in enumerate(model.potentials.values()):
            for parameter in network.parameters():
                assert (parameter.grad is not None) == (other == index)


def test_all_ignored_is_zero_loss_with_gradients(model, images):
    losses = model.losses(images, torch.full((2, 30, 26), 255))
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_marginals_are_mean_field_over_the_rows_potentials(model, images, name):
    energies = model.energies(images)
    row = VARIANTS[name]
    unary = energies.unaries[row.unary] if row.unary else torch.zeros(144, K)
    potentials = [energies.pairwise[relation] for relation in row.relations]
    expected = reference.mean_field(unary, potentials, iterations=2)
    marginals = model.marginals(energies, name)
    torch.testing.assert_close(marginals, expected.view(2, 9, 8, K).permute(0, 3, 1, 2))
    start = model.marginals(energies, name, iterations=0)
    torch.testing.assert_close(start.permute(0, 2, 3, 1).flatten(0, 2), (-unary).softmax(dim=1))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (31, 17)])
def test_prediction_of_any_size(model, size):
    images = torch.rand(1, 3, *size) * 255
    with torch.no_grad():
        marginals = model.predict(images, "1unary+2pair")
        resized = model.predict(images, "1unary+2pair", size=(5, 6))
    assert marginals.shape == (1, K, *size)
    assert resized.shape == (1, K, 5, 6)
    torch.testing.assert_close(marginals.sum(1), torch.ones(1, *size))


def test_potentials_are_those_of_a_prediction_unless_others_are_named():
    relations = {"left": RelationConfig("offsets", offsets=(0, 0, -2, -1))}
    assert ModelConfig().potential_names() == ("unary", "surrounding", "above_below")
    assert ModelConfig(relations=relations).potential_names() == ("unary", "left")
    every = ModelConfig(relations=relations, potentials="all")
    assert every.potential_names() == ("unary", "unary_1scale", "left")
    twice = ModelConfig(potentials=("above_below", "unary", "above_below"))
    assert twice.potential_names() == ("above_below", "unary")
    model = DeepCRF(replace(TINY, potentials=None), K)
    assert tuple(model.potentials) == ("unary", "surrounding", "above_below")
    assert list(model.variants()) == [name for name in VARIANTS if name != "unary-1scale"]
    with pytest.raises(InputError, match="got none, must be the word all, or a list of some"):
        ModelConfig(potentials=())


def test_rows_of_a_model_with_some_potentials(images):
    config = ModelConfig(
        widths=(4,), convs=(1,), pooled_blocks=1, head_widths=(5,), hidden=8,
        relations={"left": RelationConfig("offsets", offsets=(0, 0, -2, -1))},
        potentials=("left", "unary"),
    )  # fmt: skip
    model = DeepCRF(config, K)
    assert list(model.variants()) == ["unary-3scales", "pairwise-left", "1unary+1pair"]
    assert model.default_variant() == Variant("unary", ("left",))
    assert model.predict(images, model.default_variant()).shape == (2, K, 30, 26)
    with pytest.raises(ValueError, match="surrounding"):
        model.predict(images, "pairwise-1")
    with pytest.raises(ValueError, match="pairwise-9"):
        model.predict(images, "pairwise-9")
    with pytest.raises(ValueError, match="surrounding"):
        model.energies(images, ["surrounding"])
    with pytest.raises(ValueError, match="names: got none, must be at least one potential"):
        model.energies(images, [])


def test_relations_become_boxes_of_the_grid():
    above = RelationConfig("above_below", width=0.3, height=0.4)
    around = RelationConfig("surrounding", width=0.2, height=0.2)
    offsets = RelationConfig("offsets", offsets=(-1, 2, 0, 3))
    assert above.box(20, 30) == RangeBox(1, 8, -3, 3)
    assert around.box(20, 30) == RangeBox(-2, 2, -2, 2)
    assert offsets.box(20, 30) == RangeBox(-1, 2, 0, 3)
    graph = relation_graph(around, 2, 20, 30, torch.device("cpu"))
    one = EdgeGraph.from_range_box(20, 30, RangeBox(-2, 2, -2, 2))
    assert graph.num_nodes == 1200
    assert torch.equal(graph.edge_index()[:, : one.num_edges], one.edge_index())
    assert torch.equal(graph.edge_index()[:, one.num_edges :], one.edge_index() + 600)
    assert relation_graph(around, 2, 20, 30, torch.device("cpu")) is graph


def test_autocast_leaves_unary_energies_and_losses_in_float32(model, images):
    exact = model.energies(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energies = model.energies(images)
        loss = model.losses(images, torch.zeros(2, 30, 26, dtype=torch.int64))["above_below"]
    assert loss.dtype == torch.float32
    for name, unary in energies.unaries.items():
        assert unary.dtype == torch.float32
        torch.testing.assert_close(unary, exact.unaries[name], rtol=0.05, atol=0.05)
    for name, potential in energies.pairwise.items():
        assert potential.dtype == torch.bfloat16
        torch.testing.assert_close(
            potential.energies().float(), exact.pairwise[name].energies(), rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("name", ["left.right", "type", "keys"])
def test_a_relation_that_no_module_can_be_called_is_refused(name):
    config = ModelConfig(relations={name: RelationConfig("surrounding")}, potentials=(name,))
    with pytest.raises(InputError, match=f"model.relations: got the name '{name}'"):
        DeepCRF(config, K)
