"""One training step, as the trainer makes it but for the logging."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from scanrl.batch import Batch

__all__ = ["training_step"]


def training_step(
    loss: Callable[[Batch], Tensor], parameters: Iterable[nn.Parameter], batch: Batch
) -> Callable[[], None]:
    """A function that makes one step on `batch`: loss, backward, clipping, AdamW."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        value = loss(batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        optimizer.step()

    return step
