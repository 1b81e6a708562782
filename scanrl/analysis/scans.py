"""What every scan of a model reads while the model reads a batch.

Symbols: `B` batch, `K` steps, `L` tokens, `E` channels, `N` states per channel.
"""

from __future__ import annotations

import re
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.data import Dataset
from scanrl.data.windows import iterate_windows
from scanrl.models.decision import DecisionModel
from scanrl.nn.mamba import Mamba, Selection
from scanrl.types import DataError

__all__ = ["full_windows", "scans"]


def scans(model: DecisionModel, batch: Batch) -> dict[str, tuple[Mamba, list[Selection]]]:
    """By its name every Mamba of the model, with what its scan reads of `batch`, once for each time it is called.

    Raises:
        DataError: the model has none.
    """
    found = {_name(path): module for path, module in model.named_modules() if isinstance(module, Mamba)}
    if not found:
        raise DataError(
            f"model.pattern: expected a model with a mamba (no other scan is read), got {model.config.pattern!r}"
        )
    inputs: dict[nn.Module, list[Tensor]] = {module: [] for module in found.values()}
    training = model.training
    with torch.no_grad(), ExitStack() as hooks:
        for module in found.values():
            hooks.enter_context(module.register_forward_pre_hook(lambda one, given: inputs[one].append(given[0])))
        model.eval()(batch)
        read = {name: (module, [module.selection(x) for x in inputs[module]]) for name, module in found.items()}
    model.train(training)
    return read


def full_windows(dataset: Dataset, steps: int, count: int) -> Batch:
    """Up to `count` windows of `steps` steps without padding, evenly over the data.

    Where no episode is so long, windows are as long as the longest one.
    """
    steps = min(steps, int(dataset.lengths.max()))
    number = int((dataset.lengths // steps).sum())
    chosen = np.zeros(number, np.bool_)
    chosen[np.linspace(0, number - 1, min(count, number)).round().astype(np.int64)] = True
    rows, seen = [], 0
    for batch in iterate_windows(dataset, steps, 256):
        full = batch.mask.all(1)
        found = int(full.sum())
        full[full.clone()] = torch.from_numpy(chosen[seen : seen + found])
        rows.append([x[full] if x.numel() else x for x in batch])
        seen += found
    columns = zip(*rows, strict=True)
    return Batch(*(torch.cat(parts) if parts[0].ndim > 1 else parts[0] for parts in columns))


def _name(path: str) -> str:
    """`stack.mixers.1` is `mixer 2`, `stack.mixers.0.local` is `mixer 1 local`."""
    numbered = re.sub(r"(?:^|\.)stack\.mixers\.(\d+)", lambda found: f" mixer {int(found[1]) + 1}", path)
    return numbered.replace(".", " ").strip()
