"""Eigenvalues of the scans' A, and the memory that they give with the step sizes that data calls for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from scanrl.analysis.scans import scans
from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel

__all__ = ["Spectrum", "spectra"]


class Spectrum(NamedTuple):
    """One scan.

    Attributes:
        name: where it stands, e.g. `mixer 2`.
        eigenvalues: of A, `(E, N)`: real and negative, per unit of step size. A is diagonal: they are its entries.
        step_sizes: dt of every channel, `(E,)`, averaged over the data.
        memory: environment steps in which a state falls to 1/e, `(E, N)`; at most the window of a scan whose state is
            reset within the batch's (a local branch).
    """

    name: str
    eigenvalues: np.ndarray
    step_sizes: np.ndarray
    memory: np.ndarray


def spectra(model: DecisionModel, batch: Batch) -> list[Spectrum]:
    r"""The spectrum of every scan of a model, in the order in which they stand.

    A state of channel `e` decays by `exp(dt a)` a token, so that it remembers `1 / (dt |a|)` tokens, and
    `memory = 1 / (M mean(dt) |a|)` steps of `M` tokens.

    Args:
        model: any with a Mamba inside.
        batch: windows without padding, see `full_windows`.

    Raises:
        DataError: the model has no scan.

    Reference: the figure of eigenvalues by branch in MambaDM, arXiv 2406.02013.
    """
    found = []
    for name, (mixer, reads) in scans(model, batch).items():
        eigenvalues = -mixer.A_log.detach().double().exp().cpu().numpy()
        step_sizes = torch.cat([read.dt.flatten(0, 1) for read in reads]).double().mean(0).cpu().numpy()
        memory = 1 / (model.config.period * step_sizes[:, None] * -eigenvalues)
        longest = max(read.dt.shape[1] for read in reads) / model.config.period
        if longest < batch.mask.shape[1]:
            memory = np.minimum(memory, longest)
        found.append(Spectrum(name, eigenvalues, step_sizes, memory))
    return found
