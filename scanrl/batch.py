"""`Batch`: the one container on the way from recorded data to the network.

Symbols: `B` batch, `T` environment steps, `O`/`A` observation/action shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch"]

_NONE = torch.empty(0)


class Batch(NamedTuple):
    """Windows of equal length, padded on the right, in raw units.

    Attributes:
        observations: `(B, T, *O)` float32; zero where padded. Images are uint8; where a step sees `k > 1` of them,
            consecutive ones `(B, T + k - 1, *O)`, those before the window first, or stacked ones `(B, T, k, *O)`.
        actions: `(B, T, A)` float32, `(B, T)` int64 if discrete, `(B, T, A)` int64 if several choices; zero where
            padded.
        rewards: `(B, T)` float32.
        returns_to_go: `(B, T)` float32, undiscounted sum of this and all later rewards of the episode.
        timesteps: `(B, T)` int64, index of the step within its episode.
        mask: `(B, T)` bool, true where the entry is data. Only the loss reads it.
        goals: `(B, T, *O)` float32, the valuable state ahead of each step; empty where the sampler gives none.
        goal_values: `(B, T)` float32, reward per step on the way there; likewise.
        next_observations: `(B, T, *O)` float32, what was seen after each step, zero where `followed` is false; empty
            unless the steps are examples behind a query.
        followed: `(B, T)` bool, whether that is known: not at the end of an episode; likewise.
        queries: `(B, *O)` float32, an observation for which an action is asked; likewise.
        targets: `(B, A)` float32 or `(B,)` int64, the optimal action there; likewise, and empty when acting.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor
    goals: Tensor = _NONE
    goal_values: Tensor = _NONE
    next_observations: Tensor = _NONE
    followed: Tensor = _NONE
    queries: Tensor = _NONE
    targets: Tensor = _NONE

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(x.to(device, non_blocking=True) for x in self))

    def finals(self) -> Tensor:
        """`(B, T)` bool, true at the last step of an episode, or of what the row holds of it."""
        begins = (self.timesteps == 0) | ~self.mask
        ends = torch.cat([begins[:, 1:], torch.ones_like(begins[:, :1])], 1)
        return self.mask & ends

    def __repr__(self) -> str:
        return f"Batch({', '.join(f'{k}={tuple(v.shape)}' for k, v in self._asdict().items() if v.numel())})"
