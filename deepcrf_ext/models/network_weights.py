"""Weights of a network from a file, as libraries and people save them."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcrf_ext.errors import InputError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")


@dataclass(frozen=True)
class Loaded:
    """What of a file went into a network.

    taken: names of tensors of the network that took values. missing: that took none. left: names in
    the file that have no place, or another shape.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.taken)} of {len(self.taken) + len(self.missing)} tensors taken"
        return text + some("not in the file", self.missing) + some("of the file left", self.left)


def some(what: str, names: Sequence[str]) -> str:
    """How many tensors these are, with the first of their names, to stand behind a sentence."""
    if not names:
        return ""
    return f"; {len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch saved.

    A dictionary around it (`state_dict`, `model`) and the prefix `module.` of parallel training are
    taken off. Raises InputError naming the file when it holds no tensors by name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            state = importlib.import_module("safetensors.torch").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise InputError(f"{path}: needs pip install safetensors") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds no tensors alone, or is damaged; must be what torch.save writes of a "
            "state dict (a file with other objects could run code and is not read)"
        ) from error
    except Exception as error:  # what a damaged file raises is open-ended
        reason = error.strerror if isinstance(error, OSError) else "it is damaged or none"
        raise InputError(f"{path}: cannot be read as weights ({reason})") from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: holds a {type(state).__name__}, must hold tensors by name")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    return tensors


@torch.no_grad()
def load_network_weights(network: nn.Module, path: Path) -> Loaded:
    """Copies the tensors of a file (`read_state_dict`) that a network has by name and shape.

    Raises InputError when none of them fits a layer of the network.
    """
    state = read_state_dict(path)
    own = network.state_dict()
    taken = [name for name, value in own.items() if _fits(state.get(name), value)]
    for name in taken:
        own[name].copy_(state[name])
    loaded = Loaded(
        tuple(taken),
        tuple(name for name in own if name not in taken),
        tuple(name for name in state if name not in taken),
    )
    if not any(own[name].dim() > 1 for name in taken):
        raise InputError(
            f"{path}: no layer of {type(network).__name__} is in it ({loaded}); its own are called "
            f"{', '.join(list(own)[:3])}, ..."
        )
    return loaded


def _fits(value: Tensor | None, own: Tensor) -> bool:
    return value is not None and value.shape == own.shape
