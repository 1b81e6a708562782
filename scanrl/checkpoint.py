"""Checkpoints: one folder per saved step, written with one atomic commit, safetensors and JSON only.

`RUN/checkpoints/step-N/` holds `config.json` (network, spec, where it came from), `model.safetensors`, `stats.json`
and, to resume the run, `train/optimizer.safetensors` and `train/state.json`. A checkpoint exists when its folder has
its name; its manifest verifies every byte (see `scanrl.folder`).
"""

from __future__ import annotations

import contextlib
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
from safetensors.torch import save as save_tensors
from torch import Tensor

from scanrl.config import from_values, to_values
from scanrl.folder import MANIFEST, Writer, verify_folder, write_folder
from scanrl.models.build import Model, build_model
from scanrl.nn import ModelConfig
from scanrl.stats import Stats
from scanrl.types import CorruptFile, DataError, Spec

__all__ = ["Checkpoint", "checkpoints_of", "load_checkpoint", "prune", "save_checkpoint", "sweep"]

KIND, VERSION = "scanrl-checkpoint", 1
MODEL_FILES = ("config.json", "model.safetensors", "stats.json")
TRAIN_FILES = ("train/optimizer.safetensors", "train/state.json")
STEP = re.compile(r"step-(\d+)", re.ASCII)


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

    def model(self) -> Model:
        """The network with these weights.

        Raises:
            CorruptFile: a tensor is missing, unknown, or of another shape or type; the message names it.
        """
        model = build_model(self.config, self.spec, self.stats)
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
    model: Model,
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
        DataError: there is no checkpoint, a newer release wrote it, or its action was read at another token than now.
        CorruptFile: the only ones there are damaged.
    """
    path = Path(path)
    candidates = checkpoints_of(path)
    if (path / MANIFEST).exists() or (STEP.fullmatch(path.name) and path.is_dir() and not candidates):
        return _read(path)
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
    return list(_by_step(Path(run)).values())


def prune(run: Path, keep: int, step: int) -> None:
    """Remove what is not needed after the checkpoint of `step` has been written.

    That is all but the `keep` latest up to `step` (0 keeps all), later ones (they were damaged, so that the run was
    resumed before them), and leftovers of writers that were killed.
    """
    found = _by_step(run)
    upto = [path for number, path in found.items() if number <= step]
    later = [path for number, path in found.items() if number > step]
    for path in (upto[:-keep] if keep else []) + later:
        # Renamed first: a folder that is only half removed must not look like a checkpoint.
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f".{path.name}.stale"))
    sweep(run)


def sweep(run: Path) -> None:
    """Remove what writers that were killed have left in a run's folder of checkpoints."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _by_step(run: Path) -> dict[int, Path]:
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not folder.is_dir():
        return {}
    return dict(sorted((int(m[1]), p) for p in folder.iterdir() if (m := STEP.fullmatch(p.name))))


def _read(path: Path) -> Checkpoint:
    if not (path / MANIFEST).exists():
        raise CorruptFile(f"{path / MANIFEST}: expected a file, got none")
    resumable = (path / "train").is_dir()
    names = MODEL_FILES + TRAIN_FILES if resumable else MODEL_FILES
    manifest = verify_folder(path, KIND, VERSION, names)
    config, figures = _read_json(path / "config.json"), _read_json(path / "stats.json")
    try:
        model_config = from_values(ModelConfig, config["model"])
        spec, stats = Spec.from_json(config["spec"]), Stats.from_json(figures)
        step, about = int(manifest["step"]), config["about"]
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise CorruptFile(f"{path / 'config.json'}: expected the fields of a checkpoint, got {error!r}") from None
    if "returns" not in config["model"] and "sR" in model_config.layout:
        # Those of older releases read the action at s; read at the R behind it, they would act at random.
        expected = "model.layout: expected one without R right behind s in a checkpoint of this age"
        raise DataError(f"{path / 'config.json'}: {expected}, got {model_config.layout!r}: train it anew")
    named = STEP.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise CorruptFile(f"{path / MANIFEST}: step: expected {named[1]} as in its name, got {step}")
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


def _json_writer(values: dict[str, Any]) -> Writer:
    return lambda path: path.write_bytes(json.dumps(values, indent=1).encode())


def _tensor_writer(tensors: dict[str, Tensor]) -> Writer:
    # Through memory: a full disk is then an OSError with its number, which the library's own writer would hide.
    return lambda path: path.write_bytes(save_tensors(tensors))


def _describe(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
