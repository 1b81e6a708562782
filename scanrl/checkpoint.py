"""Checkpoints: one folder per saved step, written with one atomic commit, safetensors and JSON only.

`RUN/checkpoints/step-N/` holds `config.json` (network, spec, where it came from), `model.safetensors`, `stats.json`
and, to resume the run, `train/optimizer.safetensors` and `train/state.json`. A checkpoint exists when its folder has
its name; its manifest verifies every byte (see `scanrl.folder`).
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from scanrl.config import from_values, to_values
from scanrl.folder import MANIFEST, verify_folder, write_folder
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.stats import Stats
from scanrl.types import CorruptFile, DataError, Spec

__all__ = ["Checkpoint", "checkpoints_of", "load_checkpoint", "prune", "save_checkpoint"]

KIND, VERSION = "scanrl-checkpoint", 1
MODEL_FILES = ("config.json", "model.safetensors", "stats.json")
TRAIN_FILES = ("train/optimizer.safetensors", "train/state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint folder holds, verified.

    Attributes:
        path: the folder.
        step: optimiser updates made.
        config: the network.
        spec: shapes and kinds of observations and actions.
        stats: statistics of the training data.
        weights: parameters by name.
        about: recipe, dataset and versions, as written by the trainer.
        optimizer: tensors of the optimiser and of random generators; empty if the run was closed.
        progress: the trainer's own JSON state; empty likewise.
    """

    path: Path
    step: int
    config: ModelConfig
    spec: Spec
    stats: Stats
    weights: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def model(self) -> DecisionModel:
        """The network with these weights.

        Raises:
            CorruptFile: a tensor is missing, unknown, or of another shape or type; the message names it.
        """
        model = DecisionModel(self.config, self.spec, self.stats)
        expected = model.state_dict()
        for name in sorted(expected.keys() | self.weights.keys()):
            wanted, found = _describe(expected.get(name)), _describe(self.weights.get(name))
            if wanted != found:
                raise CorruptFile(f"{self.path / 'model.safetensors'}: {name}: expected {wanted}, got {found}")
        model.load_state_dict(self.weights)
        return model


def save_checkpoint(
    folder: Path,
    step: int,
    model: DecisionModel,
    about: dict[str, Any],
    optimizer: dict[str, Tensor],
    progress: dict[str, Any],
) -> Path:
    """Write `folder/step-N` atomically and return it.

    Raises:
        OSError: the disk refused; earlier checkpoints are untouched and nothing is left of this one.
    """
    config = {"model": to_values(model.config), "spec": model.spec.to_json(), "about": about}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    writers = {
        "config.json": _json_writer(config),
        "model.safetensors": _tensor_writer(weights),
        "stats.json": _json_writer(model.stats.to_json()),
        "train/optimizer.safetensors": _tensor_writer(optimizer),
        "train/state.json": _json_writer(progress),
    }
    path = folder / f"step-{step}"
    write_folder(path, KIND, VERSION, {"step": step, "torch": torch.__version__}, writers)
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a checkpoint folder, or the latest good one of a run folder.

    Damaged checkpoints of a run are passed over with a warning that names the damage.

    Raises:
        DataError: there is no checkpoint.
        CorruptFile: the only ones there are damaged.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return _read(path)
    candidates = checkpoints_of(path)
    if not candidates:
        raise DataError(
            f"{path}: expected a run folder or a checkpoint, got {'neither' if path.exists() else 'nothing'}"
        )
    damage: CorruptFile | None = None
    for candidate in reversed(candidates):
        try:
            found = _read(candidate)
        except CorruptFile as error:
            damage = damage or error
            continue
        if damage is not None:
            warnings.warn(
                f"passing over a damaged checkpoint: {damage}; using {candidate}", RuntimeWarning, stacklevel=2
            )
        return found
    assert damage is not None
    raise damage


def checkpoints_of(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, lowest step first. Steps count, not modification times."""
    folder = Path(run)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not folder.is_dir():
        return []
    steps = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"step-(\d+)", p.name))}
    return [steps[step] for step in sorted(steps)]


def prune(run: Path, keep: int, protected: set[Path] | None = None) -> None:
    """Remove all but the `keep` latest checkpoints, and leftovers of writers that were killed."""
    stale = checkpoints_of(run)[:-keep] if keep else []
    for path in stale:
        if path not in (protected or set()):
            shutil.rmtree(path, ignore_errors=True)
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read(path: Path) -> Checkpoint:
    resumable = (path / "train").is_dir()
    names = MODEL_FILES + TRAIN_FILES if resumable else MODEL_FILES
    manifest = verify_folder(path, KIND, VERSION, names)
    config = _read_json(path / "config.json")
    try:
        model_config = from_values(ModelConfig, config["model"])
        spec, stats = Spec.from_json(config["spec"]), Stats.from_json(_read_json(path / "stats.json"))
        step, about = int(manifest["step"]), config["about"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{path / 'config.json'}: expected the fields of a checkpoint, got {error!r}") from None
    return Checkpoint(
        path,
        step,
        model_config,
        spec,
        stats,
        _read_tensors(path / "model.safetensors"),
        about,
        _read_tensors(path / TRAIN_FILES[0]) if resumable else {},
        _read_json(path / TRAIN_FILES[1]) if resumable else {},
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    # From bytes, not mapped: a file cut short behind our back must not become a bus error later.
    try:
        return load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise CorruptFile(f"{path}: expected safetensors, got: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        raise CorruptFile(f"{path}: expected JSON, got something else") from None
    if not isinstance(values, dict):
        raise CorruptFile(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _json_writer(values: dict[str, Any]):
    return lambda path: path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _tensor_writer(tensors: dict[str, Tensor]):
    return lambda path: save_file(tensors, path)


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
