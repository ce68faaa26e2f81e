"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from deepcrf_ext.config import TrainConfig, from_dict
from deepcrf_ext.errors import InputError, reason
from deepcrf_ext.models import DeepCRF
from deepcrf_ext.models.pretrained import check_weights
from deepcrf_ext.whole_files import write_whole

FORMAT = "deepcrf_ext checkpoint 1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values; an earlier file at `path` stays whole until the new one is.

    Raises OSError naming `path` (a full disk, a read-only folder); the earlier file is intact then.
    """
    try:
        with write_whole(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except Exception as error:
        cause = _os_error(error)
        if cause is None:
            raise
        kept = "the earlier one is intact" if path.exists() else "nothing is written"
        raise OSError(
            cause.errno, f"cannot write the checkpoint ({cause.strerror}); {kept}", str(path)
        ) from error


def _os_error(error: BaseException) -> OSError | None:
    """The OSError behind an error: torch's writer wraps it in errors of its own."""
    chained: BaseException | None = error
    while chained is not None:
        if isinstance(chained, OSError):
            return chained
        chained = chained.__cause__ or chained.__context__
    return None


def find_checkpoint(path: Path, name: str = "last.pt") -> Path:
    """The checkpoint file at `path`: itself, or `name` in a run folder. Raises InputError."""
    if path.is_dir():
        if not (path / name).is_file():
            raise InputError(f"{path} holds no checkpoint {name}")
        return path / name
    if not path.is_file():
        raise InputError(f"{path} is neither a checkpoint nor a run folder")
    return path


def find_trained(path: Path) -> Path:
    """The checkpoint file at `path`: itself, or a run folder's best.pt, else its last.pt.

    Raises InputError.
    """
    return find_checkpoint(path, "best.pt" if (path / "best.pt").is_file() else "last.pt")


def checkpoint_digest(path: Path) -> str:
    """A short name of what the checkpoint file at `path` holds (see `find_trained`)."""
    digest = hashlib.sha256()
    with find_trained(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, tensors on the CPU.

    Raises InputError naming the file when it is truncated, corrupt or something else.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    with file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged pickle or zip raises is open-ended
            raise InputError(f"{path} is truncated or not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this version ({FORMAT!r})")
    return state


def read_config(state: dict[str, Any], path: Path) -> TrainConfig:
    """The settings of a checkpoint. Raises InputError naming the file where another version has
    others."""
    try:
        return from_dict(state["config"])
    except InputError as error:
        raise InputError(f"{path}: of another version: {error}") from error


def load_model(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[DeepCRF, TrainConfig, dict[str, Any]]:
    """A trained model in eval mode, its settings, and what is known about it.

    Args:
        path: a checkpoint, or a run folder (its best.pt, else its last.pt).
        device: where the model goes.

    Returns:
        model, settings, and a dictionary with "classes" (list of K names), "palette" (list of K
        RGB triples), "epoch" and "step".

    Raises:
        InputError: the file cannot be read, or its weights do not fit its settings.
    """
    file = find_trained(Path(path))
    state = load_checkpoint(file)
    config = read_config(state, file)
    if any(name.startswith("backbone.") for name in state["model"]):
        raise InputError(
            f"{file}: its model has a backbone made in Python, which only Python can make again: "
            f"DeepCRF.from_pretrained({str(file.parent / 'weights')!r}, backbone)"
        )
    model = DeepCRF(config.model, len(state["classes"]))
    load_weights(model, state, file)
    model.classes, model.palette = state["classes"], state["palette"]
    metadata = {key: state[key] for key in ("classes", "palette", "epoch", "step")}
    return model.to(device).eval(), config, metadata


def load_weights(model: DeepCRF, state: dict[str, Any], path: Path) -> None:
    """Copies a checkpoint's weights. Raises InputError naming a tensor that does not fit."""
    check_weights(model, state["model"], path)
    model.load_state_dict(state["model"])
