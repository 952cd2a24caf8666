"""Checkpoints that a power cut cannot break: written aside, synced, checksummed, then renamed into place.

A checkpoint is a folder `step-00000123` with `tensors.safetensors` and `state.json`; the latter holds the checksum of
the former. Whatever is half-written has another name and is removed at the next save.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from opsin.durable import sync_folder, write_durably, write_json
from opsin.errors import CheckpointError

VERSION = 1
_NAME = re.compile(r"step-(\d{8,})$")


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU in plain memory, each with storage of its own, as safetensors wants them."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


class Store:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run; made when missing.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and drop the oldest ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        place = self.folder / f"step-{step:08d}"
        if place.exists():  # complete, and to resume from it leads to the same end; replacing it could lose both
            return place
        aside = self.folder / f".step-{step:08d}.partial"
        aside.mkdir()
        data = dump_tensors(contiguous(tensors))
        write_durably(aside / "tensors.safetensors", data)
        checksum = hashlib.sha256(data).hexdigest()
        write_json(aside / "state.json", {"version": VERSION, "sha256": checksum, "step": step, "state": state})
        aside.rename(place)
        sync_folder(self.folder)
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)
        return place

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.match(p.name) and p.is_dir())

    def load(self, path: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of a checkpoint, the latest by default; None when there is none yet.

        Raises:
            CheckpointError: if the checkpoint is damaged or was written by a newer version.
        """
        found = self.list()
        if path is None and not found:
            return None
        place = path or found[-1]
        try:
            record = json.loads((place / "state.json").read_text(encoding="utf-8"))
            data = (place / "tensors.safetensors").read_bytes()
            version, checksum, state = record["version"], record["sha256"], record["state"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{place / 'state.json'} or the tensors beside it cannot be read ({type(error).__name__}: {error}).{self._others(place)}"
            ) from error
        if version != VERSION:
            raise CheckpointError(f"{place} has format version {version!r}; this opsin reads {VERSION}.")
        if hashlib.sha256(data).hexdigest() != checksum:
            raise CheckpointError(
                f"{place / 'tensors.safetensors'} is damaged: its checksum differs.{self._others(place)}"
            )
        return load_tensors(data), state

    def _others(self, bad: Path) -> str:
        good = [p.name for p in self.list() if p != bad]
        if not good:
            return " There is no earlier one; start the run again."
        return f" An earlier one is there: remove {bad.name} and resume from {good[-1]}."

    def _sweep(self) -> None:
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as named tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value
            elif value is not None:
                plain[f"{index}.{name}"] = value
    return tensors, plain


def restore_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Put the state from `optimizer_tensors` back; parameter groups stay as the recipe makes them."""
    state: dict[int, dict[str, Any]] = {}
    for full, tensor in tensors.items():
        if full.startswith(f"{prefix}."):
            index, name = full[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
    for full, value in plain.items():
        index, name = full.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entry in optimizer.state.items():  # fused updates want the memory layout of the parameter
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entry[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        CheckpointError: with the names and shapes that differ.
    """
    own = model.state_dict()
    wrong = [f"{n}: missing" for n in own if n not in tensors]
    wrong += [f"{n}: not in the model" for n in tensors if n not in own]
    wrong += [
        f"{n}: {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own
        if n in tensors and tensors[n].shape != own[n].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise CheckpointError(f"{where} does not fit the model, {len(wrong)} tensors differ: {shown}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
