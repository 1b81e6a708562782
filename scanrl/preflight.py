"""What is checked before a run writes anything: data and environment fit, and the machine has what is asked for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch

from scanrl.data import Dataset
from scanrl.data.validate import choice_problems
from scanrl.envs.make import environment_spec
from scanrl.kernels import scan_choice
from scanrl.models.build import Model
from scanrl.settings import TrainConfig
from scanrl.types import DataError, Spec

__all__ = ["bounded", "check_machine", "warn_of_short_table"]


def bounded(dataset: Dataset, env: str | None) -> Dataset:
    """The dataset with the environment's actions and id, after checking that the two fit each other."""
    if env is None:
        return dataset
    spec = environment_spec(env, like=dataset.spec)
    dataset = _in_parts(dataset, spec)
    difference = spec.difference(dataset.spec, recorded=True)
    if difference is not None:
        raise DataError(f"{dataset.name}: {difference} (from {env})")
    _check_bounds(dataset, spec, env)
    return dataset.with_spec(replace(spec, frame_stack=max(spec.frame_stack, dataset.spec.frame_stack)))


def _in_parts(dataset: Dataset, spec: Spec) -> Dataset:
    """Rows of numbers whose file does not say that some of them are choices, as the environment says it."""
    if (
        not spec.action_parts
        or dataset.spec.action_kind != "continuous"
        or dataset.actions.shape[1:] != spec.action_shape
    ):
        return dataset
    parts = {name: getattr(spec, name) for name in ("action_kind", "action_size", "action_parts")}
    told = replace(dataset.spec, **parts, action_low=None, action_high=None)
    # Checked as real numbers, then stored as whole ones.
    columns = dataset.columns
    for problem in choice_problems(dataset.name, columns["actions"], dataset.offsets, told):
        raise DataError(problem)
    columns["actions"] = columns["actions"].astype(told.action_dtype, copy=False)
    return Dataset(
        columns,
        dataset.offsets,
        told,
        dataset.name,
        fingerprint=dataset.fingerprint,
        source=dataset.source,
        tasks=dataset.tasks,
        histories=dataset.histories,
    )


def _check_bounds(dataset: Dataset, spec: Spec, env: str) -> None:
    """Actions the environment would not take are most often in other units; what rounding adds is let through."""
    begin = 0
    for part in spec.action_parts:
        if part.low is not None and part.high is not None:
            _check_columns(dataset, begin, part.low, part.high, env)
        begin += part.size
    if spec.action_low is None or spec.action_high is None:
        return
    _check_columns(dataset, 0, spec.action_low, spec.action_high, env)


def _check_columns(dataset: Dataset, begin: int, lows: Sequence[float], highs: Sequence[float], env: str) -> None:
    """Whether the entries from `begin` on are within their bounds."""
    low, high = np.asarray(lows), np.asarray(highs)
    actions = dataset.actions[:, begin : begin + len(low)]
    lowest, highest = actions.min(axis=0), actions.max(axis=0)
    excess = np.maximum(low - lowest, highest - high) - 1e-3 * (high - low)
    entry = int(excess.argmax())
    if excess[entry] <= 0:
        return
    column = actions[:, entry]
    share = 100 * np.mean((column < low[entry]) | (column > high[entry]))
    extreme = highest[entry] if highest[entry] - high[entry] > low[entry] - lowest[entry] else lowest[entry]
    raise DataError(
        f"{dataset.name}: actions[{begin + entry}]: expected within {low[entry]:g} to {high[entry]:g} ({env}), "
        f"got {extreme:g} ({share:.3g} % of steps outside)"
    )


def warn_of_short_table(model: Model) -> None:
    """The table is not made to fit on its own: published parameter counts depend on its size."""
    rows, longest = model.config.max_length, model.stats.max_length
    if model.config.time_embedding and longest > rows:
        message = f"model.max_length: {rows} steps have a time embedding, and the longest episode has {longest}"
        warnings.warn(f"{message}; give the others their own with --model.max-length {longest}", stacklevel=3)


def check_machine(settings: TrainConfig) -> None:
    """Whether what settings and environment variables ask for is there and can run."""
    if not _is_there(settings.device):
        raise DataError(f"train.device: expected cpu, or cuda or cuda:1 where it is there, got {settings.device!r}")
    choice = scan_choice(settings.device)
    if choice.impl == "none":
        raise DataError(f"scan: {choice.reason}")
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise DataError("train.tensorboard: expected the package tensorboard: pip install 'scanrl[track]'")


def _is_there(device: str) -> bool:
    """Whether it is a device to train on; torch knows some that hold no numbers, such as meta."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        return False
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True
