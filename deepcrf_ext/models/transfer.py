"""Weights of a trained model in a new one, of other classes too (fine-tuning)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcrf_ext.models.deep_crf import DeepCRF
from deepcrf_ext.models.network_weights import some
from deepcrf_ext.models.potential_nets import PairwiseNet, UnaryNet


@dataclass(frozen=True)
class Transfer:
    """What `transfer_weights` took.

    whole: names of tensors taken as they are. in_part: of the classes that both models have.
    new: of this model, not taken. left: of the other model, without a place here.
    classes: those that both models have.
    """

    whole: tuple[str, ...]
    in_part: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    classes: tuple[str, ...]

    def started(self, names: Sequence[str]) -> bool:
        """Whether all these tensors were taken, and there are any."""
        return bool(names) and set(names) <= {*self.whole, *self.in_part}

    def __str__(self) -> str:
        total = len(self.whole) + len(self.in_part) + len(self.new)
        text = f"{len(self.whole)} of {total} tensors taken"
        if self.in_part:
            known = ", ".join(self.classes) or "none"
            text += f", {len(self.in_part)} more for the classes that both have ({known})"
        return text + some("start anew", self.new) + some("have no place here", self.left)


@torch.no_grad()
def transfer_weights(
    model: DeepCRF,
    classes: Sequence[str],
    weights: Mapping[str, Tensor],
    their_classes: Sequence[str],
) -> Transfer:
    """Copies what fits of another model's state into a model.

    A tensor fits under its name in its shape. The last layers, whose shapes hold the number of
    classes, are taken class by class, by the classes' names; what they say of new classes stays.

    Args:
        model: of K classes.
        classes: their K names.
        weights: the other model's state dict.
        their_classes: names of its classes, in the order of their indices.
    """
    shared = [name for name in classes if name in their_classes]
    ours = torch.tensor([list(classes).index(name) for name in shared], device="cpu")
    theirs = torch.tensor([list(their_classes).index(name) for name in shared], device="cpu")
    same_classes = list(classes) == list(their_classes)
    axes = _class_axes(model)
    whole, in_part, new = [], [], []
    for name, own in model.state_dict().items():
        value = weights.get(name)
        if value is None:
            new.append(name)
        elif name in axes and not same_classes:
            count = axes[name]
            expected = (len(their_classes),) * count + tuple(own.shape[count:])
            if tuple(value.shape) != expected or not shared:
                new.append(name)
                continue
            if count == 1:
                own[ours.to(own.device)] = value[theirs].to(own)
            else:
                own[ours[:, None], ours] = value[theirs[:, None], theirs].to(own)
            in_part.append(name)
        elif value.shape == own.shape:
            own.copy_(value)
            whole.append(name)
        else:
            new.append(name)
    taken = {*whole, *in_part}
    left = tuple(name for name in weights if name not in taken and name not in new)
    return Transfer(tuple(whole), tuple(in_part), tuple(new), left, tuple(shared))


def _class_axes(model: nn.Module) -> dict[str, int]:
    """How many leading axes of a tensor are classes, for those that have any."""
    axes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, UnaryNet):
            axes |= {f"{name}.output.weight": 1, f"{name}.output.bias": 1}
        elif isinstance(module, PairwiseNet):
            axes |= {f"{name}.weight": 2, f"{name}.bias": 2}
    return axes
