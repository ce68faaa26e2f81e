"""DeepCRF as a module among others: forward, backbones, weights of relations, folders, exports."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import deepcrf_ext as dc
from deepcrf_ext.config import ModelConfig
from deepcrf_ext.models import DeepCRF, Variant

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4


class Backbone(nn.Module):
    """A network of one's own at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5, 4, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def make(backbone: nn.Module | None = None, **settings: Any) -> DeepCRF:
    torch.manual_seed(0)
    config = ModelConfig(
        **{"widths": (4, 6), "convs": (1, 1), "pooled_blocks": 2, "head_widths": (8,)},
        **{"hidden": 8, "pairwise_hidden": 16, "relation_weight": 0.3, **settings},
    )
    model = DeepCRF(config, CLASSES, backbone).eval()
    with torch.no_grad():
        for network in model.potentials.values():
            network.get_parameter("bias" if hasattr(network, "bias") else "output.bias").normal_()
    return model


def images(*size: int) -> Tensor:
    return 255 * torch.rand(*(size or (2, 3, 30, 26)), generator=torch.Generator().manual_seed(1))


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "the paper's": dict,
    "cvpr16": lambda: {"share_blocks": True, "head_per_scale": True},
    "a backbone": lambda: {"backbone": Backbone()},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_forward_is_the_logarithm_of_the_prediction(kind: str) -> None:
    model = make(**KINDS[kind]())
    found = model(images())
    assert found.shape == (2, CLASSES, 30, 26)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), model.predict(images(), model.default_variant()))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 30, 26))
    assert dc.DeepCRF is DeepCRF


@every_kind
def test_end_to_end_training_reaches_all_that_forward_uses(kind: str) -> None:
    model = make(**KINDS[kind]()).train()
    labels = torch.randint(CLASSES, (2, 30, 26))
    functional.nll_loss(model(images()), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    weights = [model.potentials[name].log_weight for name in ("surrounding", "above_below")]
    assert all(weight.grad != 0 for weight in weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_dtype(dtype: torch.dtype) -> None:
    model, pixels = make(), images(2, 3, 24, 32)
    wanted = model(pixels)
    found = model.to(dtype)(pixels.to(dtype))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert (found.exp() - wanted.exp()).abs().max() < 0.03


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0], TypeError, "images: got list, must be a torch.Tensor"),
        (
            torch.zeros(3, 8, 8),
            ValueError,
            r"images: got shape \[3, 8, 8\], must be \[B, 3, H, W\]",
        ),
        (torch.zeros(2, 4, 8, 8), ValueError, r"images: got shape \[2, 4, 8, 8\]"),
    ],
)
def test_what_is_no_batch_of_images_is_named(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()(given)


def test_images_where_the_network_is_sure_have_finite_log_probabilities() -> None:
    model = make()
    with torch.no_grad():
        model.potentials["unary"].output.bias.copy_(torch.tensor([0.0, 500, 500, 500]))
    found = model(images())
    assert found.isfinite().all()
    assert found.min() < -80


def test_relation_weights_multiply_energies_in_a_crf_alone() -> None:
    model = make()
    energies = model.energies(images())
    labels = torch.randint(CLASSES, (2, 30, 26))
    losses = model.losses(images(), labels)
    assert model.relation_weights == pytest.approx({"surrounding": 0.3, "above_below": 0.3})
    model.set_relation_weights({"surrounding": 2.0, "above_below": 0.0})
    torch.testing.assert_close(model.losses(images(), labels), losses)
    assert model.relation_weights == pytest.approx({"surrounding": 2.0, "above_below": 0.0}, abs=0)
    _, (first, second) = model.crf(energies, "1unary+2pair")
    wanted = energies.pairwise["surrounding"].energies()
    torch.testing.assert_close(first.energies(), 2 * wanted)
    assert second.energies().abs().max() < 1e-20
    alone = model.marginals(energies, Variant("unary", ("surrounding",)))
    torch.testing.assert_close(model.marginals(energies, "1unary+2pair"), alone)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_first_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(dc.InputError, match="relation_weight"):
        ModelConfig(relation_weight=weight)


def test_a_backbone_is_tried_without_a_trace() -> None:
    backbone = Backbone().train()
    backbone.layers[3].eval()
    state = copy.deepcopy(backbone.state_dict())
    model = make(backbone)
    model.train()
    backbone.layers[3].eval()
    assert model.grid_size(30, 26) == (8, 7)
    torch.testing.assert_close(backbone.state_dict(), state, rtol=0, atol=0)
    assert [part.training for part in backbone.layers] == [True, True, True, False]
    assert model.potential_names == ("unary", "surrounding", "above_below")
    labels = torch.full((2, 30, 26), 255)
    labels[0] = 1
    assert model.loss_count("unary", labels) == 56
    assert set(model.losses(images(), labels)) == set(model.potential_names)


def test_channels_of_a_backbone_may_be_told() -> None:
    class Told(nn.Module):
        out_channels = 5

        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[2:] == (30, 26), "no trial run is needed"
            return images.mean(1, keepdim=True)[..., ::2, ::2].expand(-1, 5, -1, -1)

    assert make(Told())(images()).shape == (2, CLASSES, 30, 26)


@pytest.mark.parametrize(
    ("backbone", "error", "named"),
    [
        (lambda images: images, TypeError, "backbone: got function"),
        (nn.Flatten(), ValueError, "backbone: returned shape"),
        (nn.LSTM(64, 2), TypeError, "backbone: returned tuple"),
    ],
)
def test_what_is_no_backbone_is_named(backbone: Any, error: type[Exception], named: str) -> None:
    if isinstance(backbone, nn.LSTM):
        backbone.forward = lambda images: (images, images)
    with pytest.raises(error, match=named):
        make(backbone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_features_of_another_dtype_are_named(dtype: torch.dtype) -> None:
    class Other(Backbone):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).to(dtype)

    model = make(Other())
    with pytest.raises(TypeError, match=f"features: got dtype {dtype}, must be"):
        model(images())
    if dtype == torch.float16:
        with torch.autocast("cpu", dtype):
            assert model(images()).dtype == torch.float32


@every_kind
def test_a_folder_keeps_the_model(kind: str, tmp_path: Path) -> None:
    model = make(**KINDS[kind](), potentials=("above_below", "unary"))
    model.classes, model.palette = ["a", "b", "c", "d"], [[i, 0, 255] for i in range(4)]
    model.save_pretrained(tmp_path / "new" / "folder")
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"model.safetensors", "config.json"}
    fresh = Backbone() if kind == "a backbone" else None
    loaded = DeepCRF.from_pretrained(str(tmp_path / "new" / "folder"), fresh)
    assert not loaded.training
    assert loaded.config == model.config
    assert (loaded.classes, loaded.palette) == (model.classes, model.palette)
    assert torch.equal(loaded(images()), model(images()))
    loaded.save_pretrained(tmp_path / "new" / "folder")  # over the old one


def test_a_folder_names_the_network_of_its_backbone(tmp_path: Path) -> None:
    """Unlike a module handed in, it is made anew from its name."""
    pytest.importorskip("efficientnet_lite_pytorch")
    config = ModelConfig(backbone="efficientnet_lite:0", share_blocks=True)
    model = DeepCRF(config, CLASSES).eval()
    model.save_pretrained(tmp_path)
    loaded = DeepCRF.from_pretrained(tmp_path)
    assert torch.equal(loaded(images()), model(images()))
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("efficientnet_lite:0", "timm:none"))
    with pytest.raises(dc.InputError, match=r"config\.json: model\.backbone: timm"):
        DeepCRF.from_pretrained(tmp_path)


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with pytest.raises(dc.InputError, match=r"config.json: No such file.*no saved model"):
        DeepCRF.from_pretrained(folder)
    make().save_pretrained(folder)
    with pytest.raises(dc.InputError, match="backbone must be None"):
        DeepCRF.from_pretrained(folder, Backbone())
    description = json.loads((folder / "config.json").read_text())

    def changed(**changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**description, **changes}))

    for changes, named in (
        ({"format": "another"}, "not of a model of this version"),
        ({"num_classes": 5}, "the model needs"),
        ({"num_classes": "four"}, "config.json"),
        ({"model": {"widths": 3}}, "widths"),
        ({"model": {"colour": 3}}, "colour: unknown"),
        ({"backbone": "ResNet"}, "backbone must be given: the ResNet"),
    ):
        changed(**changes)
        with pytest.raises(dc.InputError, match=named):
            DeepCRF.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(dc.InputError, match="config.json is damaged"):
        DeepCRF.from_pretrained(folder)
    changed()
    tensors = load_file(folder / "model.safetensors")
    name, tensor = tensors.popitem()
    for wrong, named in (
        (tensors, rf"{name} has nothing, the model needs \("),
        ({**tensors, name: tensor, "more": tensor + 1}, r"more has \(.*, the model needs nothing"),
    ):
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(dc.InputError, match=named):
            DeepCRF.from_pretrained(folder)
    make().save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(dc.InputError, match="model.safetensors is damaged"):
        DeepCRF.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(dc.InputError, match=r"model.safetensors: No such file"):
        DeepCRF.from_pretrained(folder)


@every_kind
def test_copies_compute_the_same(kind: str) -> None:
    model = make(**KINDS[kind]())
    wanted = model(images())
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(images()), wanted)


@every_kind
def test_made_without_memory(kind: str) -> None:
    """The state of another model fills it, and what no state holds is there."""
    model = make(**KINDS[kind]())
    wanted = model(images())
    with torch.device("meta"):
        assigned, loaded = make(**KINDS[kind]()), make(**KINDS[kind]())
    assigned.load_state_dict(model.state_dict(), assign=True)
    loaded.to_empty(device="cpu")
    for buffer in loaded.buffers():
        buffer.fill_(0)  # what memory holds
    loaded.load_state_dict(model.state_dict())
    for same in (assigned, loaded):
        assert torch.equal(same(images()), wanted)


@every_kind
def test_exports_for_any_height_and_width(kind: str, tmp_path: Path) -> None:
    model = make(**KINDS[kind]())
    sizes = {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    program = torch.export.export(
        model, (images(2, 3, 48, 60),), dynamic_shapes={"images": sizes}, strict=False
    )
    for height, width in ((48, 60), (65, 33), (37, 90)):
        other = images(2, 3, height, width)
        wanted = model(other)
        torch.testing.assert_close(program.module()(other), wanted, rtol=1e-4, atol=1e-4)


def test_compiles_whole_for_any_size() -> None:
    torch.compiler.reset()
    model = make(potentials=("unary", "above_below"), scales=(1.0, 0.5))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for height, width in ((48, 60), (65, 33)):
            other = images(1, 3, height, width)
            torch.testing.assert_close(compiled(other), model(other), rtol=1e-4, atol=1e-4)


def _steps(model: nn.Module, mine: slice) -> None:
    labels = torch.arange(2)[:, None, None].expand(2, 30, 26)
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimiser.zero_grad()
        functional.nll_loss(model(images()[mine]), labels[mine]).backward()
        optimiser.step()


def _train_process(rank: int, output: Path) -> int:
    torch.distributed.init_process_group("gloo")
    _steps(DistributedDataParallel(make().train()), slice(rank, rank + 1))
    every = make(potentials="all").train()  # forward runs all but "unary_1scale"
    _steps(DistributedDataParallel(every, find_unused_parameters=True), slice(rank, rank + 1))
    model = DistributedDataParallel(make(batch_norm=False))
    _steps(model, slice(rank, rank + 1))
    torch.save(model.module.state_dict(), output / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Without `find_unused_parameters`: the default potentials are all used by forward."""
    codes = run_processes(_train_process, (tmp_path,), tmp_path)
    assert codes == [0, 0], (tmp_path / "0.txt").read_text()
    alone = make(batch_norm=False)
    _steps(alone, slice(0, 2))
    state = torch.load(tmp_path / "0.pt", weights_only=True)
    torch.testing.assert_close(state, dict(alone.state_dict()), rtol=1e-4, atol=1e-5)
