"""States of torch's default generators, from which dropout draws: the CPU's and that of a run's device.

A state is plain tensors by name, as checkpoints keep them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

__all__ = ["forked", "names", "restore", "seeded", "states"]


def names(device: torch.device | str) -> tuple[str, ...]:
    """What the state of a run on `device` consists of."""
    return ("random", "random_cuda") if _is_cuda(device) else ("random",)


def seeded(seed: int, device: torch.device | str) -> dict[str, Tensor]:
    """The states that a seed gives."""
    generators = (torch.Generator(), *([torch.Generator(device)] if _is_cuda(device) else []))
    return {n: g.manual_seed(seed).get_state() for n, g in zip(names(device), generators, strict=True)}


def states(device: torch.device | str) -> dict[str, Tensor]:
    """The present states; nothing waits for the device."""
    found = (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if _is_cuda(device) else []))
    return dict(zip(names(device), found, strict=True))


def restore(found: dict[str, Tensor], device: torch.device | str) -> None:
    """Make `found` the present states."""
    torch.set_rng_state(found["random"])
    if _is_cuda(device):
        torch.cuda.set_rng_state(found["random_cuda"], device)


def forked(device: torch.device | str) -> AbstractContextManager[None]:
    """The present states are those from before again, when this context ends."""
    return torch.random.fork_rng(devices=[torch.device(device)] if _is_cuda(device) else [])


def _is_cuda(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"
