"""The layer in training: what it learns, its calibration, and the machinery around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from context_task import CHANNELS, NUM_CLASSES, accuracy_below, scenes
from processes import run_processes
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from deepcrf_ext.nn import PairwiseCRF

Batch = tuple[Tensor, Tensor, Tensor]


def train(layer: PairwiseCRF, steps: int, rate: float, loss: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.Adam(layer.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


@pytest.fixture(scope="module")
def piecewise() -> PairwiseCRF:
    """A layer trained piecewise on scenes where context decides, on fixed logits."""
    torch.manual_seed(0)
    layer = PairwiseCRF(CHANNELS, NUM_CLASSES, hidden=32)
    batch = scenes(40, seed=1)
    train(layer, 40, 1e-2, lambda: sum(layer.loss(*batch).values()))
    return layer


def restarted(layer: PairwiseCRF) -> PairwiseCRF:
    """A layer of the same weights, to change."""
    other = PairwiseCRF(CHANNELS, NUM_CLASSES, hidden=32)
    other.load_state_dict(layer.state_dict())
    return other


def test_learns_what_no_unary_can_see_first_piecewise_then_end_to_end(
    piecewise: PairwiseCRF,
) -> None:
    logits, features, labels = scenes(40, seed=2)
    assert 0.4 < accuracy_below(logits, labels) < 0.6
    fresh = PairwiseCRF(CHANNELS, NUM_CLASSES)
    assert 0.4 < accuracy_below(fresh(logits, features), labels) < 0.6
    before = functional.nll_loss(piecewise(logits, features), labels)
    assert before < functional.nll_loss(logits.log_softmax(1), labels)

    layer, batch = restarted(piecewise), scenes(40, seed=1)
    train(layer, 60, 3e-3, lambda: functional.nll_loss(layer(*batch[:2]), batch[2]))
    with torch.no_grad():
        found = layer(logits, features)
    assert accuracy_below(found, labels) > 0.95
    assert functional.nll_loss(found, labels) < before / 3
    assert layer.relation_weights["above_below"] > piecewise.relation_weights["above_below"]


def test_pseudo_likelihood_learns_it_too() -> None:
    torch.manual_seed(0)
    layer = PairwiseCRF(CHANNELS, NUM_CLASSES, hidden=32)
    batch = scenes(40, seed=1)
    train(layer, 60, 2e-2, lambda: layer.loss(*batch, "pseudo_likelihood")["pseudo_likelihood"])
    logits, features, labels = scenes(40, seed=2)
    with torch.no_grad():
        assert accuracy_below(layer(logits, features), labels) > 0.9


def nll(layer: PairwiseCRF, batches: list[Batch]) -> float:
    with torch.no_grad():
        losses = [
            functional.nll_loss(layer(logits, features), labels, ignore_index=255, reduction="sum")
            for logits, features, labels in batches
        ]
    return sum(losses).item() / sum(int((batch[2] != 255).sum()) for batch in batches)


def held_out() -> list[Batch]:
    """Two batches of different sizes, with ignored nodes."""
    batches = [scenes(12, seed=2), scenes(5, seed=3)]
    for _, _, labels in batches:
        labels[:, :, 0] = 255
    return batches


def test_calibration_finds_the_weights_of_least_nll_and_touches_nothing_else(
    piecewise: PairwiseCRF,
) -> None:
    layer, batches = restarted(piecewise), held_out()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.train()
    layer.potentials["surrounding"].eval()
    layer.relation_weights["above_below"].requires_grad_(False)
    before = nll(layer, batches)
    result = layer.calibrate(batches)
    assert result.before == pytest.approx(before)
    assert result.after == pytest.approx(nll(layer, batches))
    assert result.after < 0.5 * result.before
    for name, value in layer.state_dict().items():
        assert name.startswith("relation_weights.") or torch.equal(value, state[name])
    assert layer.training
    assert not layer.potentials["surrounding"].training
    assert [w.requires_grad for w in layer.relation_weights.values()].count(False) == 1
    assert all(parameter.grad is None for parameter in layer.parameters())

    weights = {name: weight.item() for name, weight in layer.relation_weights.items()}
    for name, weight in weights.items():
        for other in (weight * 1.3, weight / 1.3, weight + 0.02):
            with torch.no_grad():
                layer.relation_weights[name].fill_(other)
            assert nll(layer, batches) >= result.after - 1e-6
            with torch.no_grad():
                layer.relation_weights[name].fill_(weight)


def test_calibration_takes_what_can_be_read_once_and_is_never_worse(
    piecewise: PairwiseCRF,
) -> None:
    layer = restarted(piecewise)
    result = layer.calibrate(batch for batch in held_out())
    again = layer.calibrate(held_out())
    assert again.before == pytest.approx(result.after)
    assert again.after <= again.before
    images = [(x, f, y.repeat_interleave(4, 1).repeat_interleave(4, 2)) for x, f, y in held_out()]
    assert restarted(piecewise).calibrate(images) == result
    without = PairwiseCRF(CHANNELS, NUM_CLASSES, relations=()).calibrate(held_out())
    assert without.before == without.after > 0


def test_calibration_without_labels_is_refused(piecewise: PairwiseCRF) -> None:
    layer = restarted(piecewise)
    logits, features, labels = scenes(2, seed=4)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    for batches in ([], [(logits, features, torch.full_like(labels, 255))]):
        with pytest.raises(ValueError, match="batches: got no labelled node"):
            layer.calibrate(batches)
    with pytest.raises(ValueError, match="batches: got no finite negative log-likelihood"):
        layer.calibrate([(logits * torch.nan, features, labels)])
    with pytest.raises(TypeError, match="batches: got a batch of dict"):
        layer.calibrate([{"logits": logits, "features": features, "labels": labels}])
    with pytest.raises(TypeError, match="batches: got NoneType, must be a list or a DataLoader"):
        layer.calibrate(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"labels: got NoneType, must be a torch.Tensor"):
        layer.calibrate([(logits, features, None)])  # type: ignore[list-item]
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)


def test_a_relation_that_says_nothing_true_is_switched_off(piecewise: PairwiseCRF) -> None:
    layer = restarted(piecewise)
    with torch.no_grad():
        layer.potentials["surrounding"].bias.copy_(9 * torch.eye(NUM_CLASSES))
    assert layer.calibrate(held_out()).after < 0.5
    assert layer.relation_weights["surrounding"] < 0.005


def test_compiles_whole_for_any_size_at_once(piecewise: PairwiseCRF) -> None:
    layer = restarted(piecewise)
    torch.compiler.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    losses = torch.compile(layer.loss, backend=backend, fullgraph=True, dynamic=True)
    for batch, height, width in ((2, 8, 9), (3, 6, 7), (5, 8, 4)):
        logits, features, labels = (
            tensor[:batch, ..., :height, :width].clone(memory_format=torch.contiguous_format)
            for tensor in scenes(9, seed=5)
        )
        logits.requires_grad_()
        wanted = layer(logits, features)
        torch.testing.assert_close(compiled(logits, features), wanted)
        (found,) = torch.autograd.grad(compiled(logits, features).square().sum(), logits)
        torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), logits)[0])
        for objective in ("piecewise", "pseudo_likelihood"):
            torch.testing.assert_close(
                losses(logits, features, labels, objective),
                layer.loss(logits, features, labels, objective),
            )
        if batch == 2:
            first_size = backend.frame_count
    assert backend.frame_count == first_size


def test_exports_for_any_size(piecewise: PairwiseCRF) -> None:
    batch, rows, columns = (torch.export.Dim(name, min=2) for name in ("b", "h", "w"))
    sizes = {0: batch, 2: rows, 3: columns}
    logits, features, _ = scenes(3, seed=5)
    program = torch.export.export(piecewise, (logits, features), dynamic_shapes=(sizes, sizes))
    for count, height, width in ((3, 8, 9), (2, 5, 4)):
        arguments = (logits[:count, :, :height, :width], features[:count, :, :height, :width])
        torch.testing.assert_close(program.module()(*arguments), piecewise(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grad_scaler_steps(piecewise: PairwiseCRF, dtype: torch.dtype) -> None:
    layer, (logits, features, labels) = restarted(piecewise), scenes(8, seed=6)
    optimiser = torch.optim.SGD(layer.parameters(), 1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = functional.nll_loss(layer(logits, features), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert scaler.get_scale() == 1024


class _Head(torch.nn.Module):
    """A network whose forward pass is the loss of its layer, as wrappers want it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unary = torch.nn.Conv2d(CHANNELS, NUM_CLASSES, 1)
        self.crf = PairwiseCRF(CHANNELS, NUM_CLASSES, hidden=8)

    def forward(self, features: Tensor, labels: Tensor, end_to_end: bool) -> Tensor:
        logits = self.unary(features)
        if end_to_end:
            return functional.nll_loss(self.crf(logits, features), labels)
        return sum(self.crf.loss(logits, features, labels).values())


def _steps(
    head: torch.nn.Module, features: Tensor, labels: Tensor, scalars: Collection[Tensor] = ()
) -> None:
    optimiser = torch.optim.SGD(head.parameters(), 0.1)
    for end_to_end in (False, False, True, True):
        optimiser.zero_grad()
        head(features, labels, end_to_end).backward()
        for parameter in scalars:  # as docs/python.md has it, by an average that gloo lacks
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
        optimiser.step()


def _train_process(rank: int, output: Path, sharded: bool) -> int:
    torch.distributed.init_process_group("gloo")
    _, features, labels = scenes(4, seed=7)
    head, scalars = _Head(), set()
    wrapped: torch.nn.Module = head
    if sharded:
        scalars = {parameter for parameter in head.parameters() if parameter.dim() == 0}
        fully_shard(head, mesh=init_device_mesh("cpu", (2,)), ignored_params=scalars)
    else:
        wrapped = DistributedDataParallel(head)
    mine = slice(2 * rank, 2 * rank + 2)
    _steps(wrapped, features[mine], labels[mine], scalars)
    state = get_model_state_dict(head, options=StateDictOptions(full_state_dict=True))
    torch.save(state, output / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_as_one_does(tmp_path: Path, sharded: bool) -> None:
    if sharded and torch.__version__ < "2.8":
        pytest.skip("FSDP2 of torch 2.7 sums gradients over gloo, where it must average them")
    codes = run_processes(_train_process, (tmp_path, sharded), tmp_path)
    assert codes == [0, 0], (tmp_path / "0.txt").read_text()
    alone = _Head()
    _, features, labels = scenes(4, seed=7)
    _steps(alone, features, labels)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    torch.testing.assert_close(states[0], dict(alone.state_dict()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_predicts(piecewise: PairwiseCRF) -> None:
    logits, features, _ = scenes(2, seed=8)
    with torch.no_grad():
        wanted = piecewise(logits, features)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if torch.equal(piecewise(logits, features), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
