"""Models as folders: weights as safetensors, everything else as JSON; nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcrf_ext.config import ModelConfig, from_dict, to_dict
from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.models.deep_crf import DeepCRF
from deepcrf_ext.whole_files import write_json, write_whole

FORMAT = "deepcrf_ext model 1"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_pretrained(model: DeepCRF, folder: Path) -> None:
    """Writes a model into a folder, made where it is missing (`DeepCRF.save_pretrained`)."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    description = {
        "format": FORMAT,
        "num_classes": model.num_classes,
        "classes": model.classes,
        "palette": model.palette,
        "backbone": None if model.backbone is None else type(model.backbone).__name__,
        "model": to_dict(model.config),
    }
    with write_whole(folder / WEIGHTS_FILE) as file:
        file.write(save(weights, {"format": "pt"}))
    write_json(folder / CONFIG_FILE, description)


def from_pretrained(folder: Path, backbone: nn.Module | None) -> DeepCRF:
    """The model that `save_pretrained` wrote (`DeepCRF.from_pretrained`)."""
    description = _read_description(folder / CONFIG_FILE)
    weights = _read_weights(folder / WEIGHTS_FILE)
    needed = description.get("backbone")
    if (needed is None) != (backbone is None):
        must = "None, as it has none" if needed is None else f"given: the {needed} it was made with"
        raise InputError(f"{folder}: backbone must be {must}")
    try:
        config = from_dict(description["model"], ModelConfig)
        model = DeepCRF(config, description["num_classes"], backbone)
    except (KeyError, TypeError, ValueError) as error:
        why = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / CONFIG_FILE}: {why}") from error
    check_weights(model, weights, folder / WEIGHTS_FILE)
    model.load_state_dict(weights)
    model.classes, model.palette = description.get("classes"), description.get("palette")
    return model.eval()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; the folder holds no saved model") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{path} is not of a model of this version ({FORMAT!r})")
    return description


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def check_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raises InputError naming a tensor that a model has and its weights do not, or in reverse."""
    own = model.state_dict()
    for key in own.keys() | weights.keys():
        stored = tuple(weights[key].shape) if key in weights else "nothing"
        needed = tuple(own[key].shape) if key in own else "nothing"
        if stored != needed:
            raise InputError(f"{path}: {key} has {stored}, the model needs {needed}")
