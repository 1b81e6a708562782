"""The optimiser of a run: AdamW, its schedule, and its state as tensors by parameter name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scanrl.checkpoint import Checkpoint
from scanrl.models.build import Model
from scanrl.nn import Mixer
from scanrl.nn.local import LocalLinear
from scanrl.settings import TrainConfig
from scanrl.types import CorruptFile

__all__ = ["adamw", "learning_rate", "load_optimizer", "optimizer_tensors", "set_learning_rate"]


SHARE = "share"
"""In a group of parameters: its step size as a share of the run's."""


def adamw(model: Model, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW in groups: a state space's own parameters are not pulled to zero (Gu and Dao 2023), dense local mixers take
    `dense_rate` of the step size.

    With `decayed="matrices"` only weights of linear maps and convolutions are decayed.
    """
    exempt = {id(m.get_parameter(n)) for m in model.modules() if isinstance(m, Mixer) for n in m.undecayed}
    if settings.decayed == "matrices":
        exempt |= {id(p) for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias")}
        exempt |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    dense = {id(p) for m in model.modules() if isinstance(m, LocalLinear) for p in m.parameters()}
    dense = dense if settings.dense_rate != 1 else set()
    plain, kept, slow = [], [], []
    for parameter in model.parameters():
        (slow if id(parameter) in dense else kept if id(parameter) in exempt else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": plain, "weight_decay": settings.weight_decay, SHARE: 1.0},
        {"params": kept, "weight_decay": 0.0, SHARE: 1.0},
        {"params": slow, "weight_decay": settings.weight_decay, SHARE: settings.dense_rate},
    ]
    cuda = torch.device(settings.device).type == "cuda"
    for group in groups:
        rate = settings.learning_rate * group[SHARE]
        # In a recorded update (see `scanrl.graphs`) a number would stay what it was; a tensor can be filled anew.
        group["lr"] = torch.tensor(rate, dtype=torch.float32, device=settings.device) if cuda else rate
    betas = (0.9, settings.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, fused=True, capturable=cuda)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The step size of the next update; each group takes its share of it."""
    for group in optimizer.param_groups:
        own = rate * group.get(SHARE, 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Step size of update number `step` (from 0): linear warm-up, then constant or a cosine to a tenth."""
    warmup = max(1, round(settings.warmup * settings.steps))
    rise = min((step + 1) / warmup, 1.0)
    if settings.schedule == "constant":
        return settings.learning_rate * rise
    done = max(0.0, (step - warmup) / max(1, settings.steps - warmup))
    return settings.learning_rate * rise * (0.55 + 0.45 * math.cos(math.pi * done))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: Model) -> dict[str, Tensor]:
    """The optimiser's moments by parameter name, so that order and grouping may change."""
    return {
        f"{key}/{name}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: Model, checkpoint: Checkpoint) -> None:
    """Take over the moments a checkpoint holds.

    Raises:
        CorruptFile: they fit another network; the parameter is named.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in checkpoint.optimizer.items():
        kind, slash, name = key.partition("/")
        if slash:
            states.setdefault(name, {})[kind] = value
    for name, parameter in model.named_parameters():
        state = states.pop(name, {})
        if state:
            shapes = {kind: tuple(value.shape) for kind, value in state.items()}
            wanted = {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}
            if shapes != wanted:
                raise CorruptFile(f"{checkpoint.path / 'train'}: optimizer: {name}: expected {wanted}, got {shapes}")
            optimizer.state[parameter] = {kind: value.to(parameter.device) for kind, value in state.items()}
    if states:
        raise CorruptFile(f"{checkpoint.path / 'train'}: optimizer: {min(states)}: expected no such parameter")
