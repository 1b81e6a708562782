"""`segments`: where the stretches of steps are that one sub-goal is for.

Symbols: `B` batch, `T` environment steps, `S` segments of a row, `c` steps of a segment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Segments", "segments"]


class Segments(NamedTuple):
    """Where the segments of a batch are: `c` steps of one episode, fewer at its end.

    A segment starts where the index of a step in its episode is a multiple of `c`, and with the first step of a row.
    """

    steps: Tensor  # (B, S, c) int64: columns of the batch, inside it also where not valid
    valid: Tensor  # (B, S, c) bool
    new: Tensor  # (B, S) bool: the first of an episode

    def gather(self, column: Tensor) -> Tensor:
        """`(B, T, ...)` as `(B, S, c, ...)`."""
        return column[torch.arange(len(column), device=column.device)[:, None, None], self.steps]


def segments(timesteps: Tensor, mask: Tensor, length: int) -> Segments:
    """The segments of `length` steps of a batch with `timesteps` and `mask` `(B, T)`, which is padded on the right."""
    columns = torch.arange(timesteps.shape[1], device=timesteps.device)
    begins = ((timesteps % length == 0) | (columns == 0)) & mask
    number = begins.cumsum(1) - 1  # of the segment that a column belongs to
    count = int(begins.sum(1).max())
    # Rows with fewer segments fill up with empty ones at the end.
    first = torch.full((len(mask), count + 1), len(columns) - 1, device=mask.device)
    rows, places = begins.nonzero(as_tuple=True)
    first[rows, number[rows, places]] = places
    steps = (first[:, :count, None] + torch.arange(length, device=mask.device)).clamp(max=len(columns) - 1)
    row = torch.arange(len(mask), device=mask.device)[:, None, None]
    mine = number[row, steps] == torch.arange(count, device=mask.device)[:, None]
    # The last column stands for every place beyond it: only its first occurrence counts.
    ahead = first[:, :count, None] + torch.arange(length, device=mask.device)
    valid = mine & mask[row, steps] & (ahead < len(columns))
    return Segments(steps, valid, timesteps.gather(1, steps[:, :, 0]) == 0)
