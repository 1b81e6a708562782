"""The feature-activation map of the scans: what every token writes into the state, and how much of it is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanrl.analysis.scans import scans
from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel
from scanrl.nn.mamba import Selection
from scanrl.types import DataError

__all__ = ["Activation", "activations"]


class Activation(NamedTuple):
    """One scan, over the tokens of every window: arrays `(B, T, M)` of `B` windows, `T` steps, `M` tokens per step.

    Attributes:
        name: where it stands, e.g. `mixer 2`.
        kept: share of the state that survives the token, 0 to 1.
        written: size of what the token adds to the state.
        left: share of what the token added that is in the state after the last token, 0 (dropped) to 1.
    """

    name: str
    kept: np.ndarray
    written: np.ndarray
    left: np.ndarray


def activations(model: DecisionModel, batch: Batch) -> list[Activation]:
    r"""The activation map of every scan of a model, in the order in which they stand.

    Token `t` adds `w_t = dt_t u_t B_t^T` `(E, N)` to the state, and multiplies what was there by `exp(dt_t A)`:

    `kept_t = mean_{e,n} exp(dt_t A)`, `written_t = |w_t| = |dt_t u_t| |B_t|`,
    `left_t = |exp(A sum_{s>t} dt_s) w_t| / |w_t|`, with `|.|` the root of the sum of squares; 0 in a local branch
    before its last window.

    Args:
        model: any with a Mamba inside.
        batch: windows without padding, from `full_windows` for example.

    Raises:
        DataError: the model has no scan, or none that reads all tokens of a window.

    Reference: after the feature-activation maps of Decision MetaMamba, arXiv 2408.10517, which print no formula.
    """
    shape = (*batch.mask.shape, model.config.period)
    found = []
    for name, (mixer, reads) in scans(model, batch).items():
        if sum(read.dt[..., 0].numel() for read in reads) > math.prod(shape):
            continue  # its windows overlap: a token has as many entries as windows
        maps = _in_order(reads, -mixer.A_log.detach().exp(), len(batch.mask))
        found.append(Activation(name, *(x.reshape(shape).cpu().numpy() for x in maps)))
    if not found:
        raise DataError("model: expected a scan that reads every step of the window once, got none")
    return found


def _in_order(reads: Sequence[Selection], A: Tensor, count: int) -> list[Tensor]:
    """`kept`, `written`, `left`, each `(count, L)`, of a scan that is called for one part of a window after the other.

    A call may hold several windows of a local branch, `(count * k, W)`, and forgets all where the next one begins.
    """
    maps = [[x.reshape(count, -1, x.shape[1]) for x in _map(read, A)] for read in reads]
    for kept, _, left in maps:
        left[:, :-1] = 0
        if kept is not maps[-1][0]:
            left[:] = 0
    return [torch.cat([one.flatten(1) for one in parts], 1) for parts in zip(*maps, strict=True)]


def _map(read: Selection, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`kept`, `written`, `left`, each `(B, L)`."""
    u, dt, B = read.u.double(), read.dt.double(), read.B.double()
    A = A.double()
    after = dt.flip(1).cumsum(1).flip(1) - dt  # sum over later tokens
    kept, left = [], []
    squares = (dt * u).square()
    for t in range(dt.shape[1]):  # all tokens at once would take L times E times N numbers
        kept.append(torch.exp(dt[:, t, :, None] * A).mean((1, 2)))
        there = torch.exp(2 * after[:, t, :, None] * A) * B[:, t, None, :].square()
        left.append((squares[:, t] * there.sum(2)).sum(1).sqrt())
    written = squares.sum(2).sqrt() * B.norm(dim=2)
    share = torch.stack(left, 1) / written.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.stack(kept, 1), written, share
