"""From images to one vector each. `ENCODERS` is the family; its keys are the names users write.

Symbols: `N` images, `C` channels (of all stacked images), `D` width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scanrl.types import DataError, Spec

__all__ = ["ENCODERS", "AtariEncoder", "stacked_images", "stacked_shape"]


class AtariEncoder(nn.Module):
    """Three convolutions and a linear map: 32 of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3 by 1, each with ReLU.

    The papers put a tanh behind it, as behind the other tokens: `ModelConfig.token_activation`.

    Args:
        shape: channels, height and width of what it reads.
        width: D.

    Raises:
        DataError: the image is smaller than the convolutions reach.

    Reference: Mnih et al. 2015 (Nature 518), as in Chen et al. 2021, arXiv 2106.01345.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, across = shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        rows, columns = (_reached(size) for size in (height, across))
        if rows < 1 or columns < 1:
            raise DataError(f"model.encoder: atari: expected images of at least 36 by 36, got {height} by {across}")
        self.linear = nn.Linear(64 * rows * columns, width)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, D)` from images `(N, C, height, width)` of real numbers."""
        return self.linear(self.convolutions(images))


def _reached(size: int) -> int:
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        size = (size - kernel) // stride + 1 if size >= kernel else 0
    return size


ENCODERS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {"atari": AtariEncoder}


def stacked_shape(spec: Spec) -> tuple[int, int, int]:
    """Channels, height and width of what a model of this spec sees at one step."""
    shape = spec.observation_shape
    if len(shape) == 2:
        return spec.frame_stack, *shape
    if _channels_last(shape):
        return spec.frame_stack * shape[2], shape[0], shape[1]
    return spec.frame_stack * shape[0], shape[1], shape[2]


def stacked_images(values: Tensor, lead: torch.Size, spec: Spec) -> Tensor:
    """Recorded images as a network's `(N, C, height, width)`, still bytes.

    Args:
        values: `(*lead, k, *O)`, or consecutive ones `(B, T + k - 1, *O)` of which step `t` sees `t` to `t + k - 1`.
        lead: `(B, T)` or `(B,)`.
        spec: shape of an image, and `k`.
    """
    count, shape = spec.frame_stack, spec.observation_shape
    if count > 1 and values.ndim == len(lead) + len(shape):
        values = values.unfold(1, count, 1).movedim(-1, 2)
    values = values.reshape(-1, count, *shape)
    if len(shape) == 3 and _channels_last(shape):
        values = values.movedim(-1, 2)
    return values.flatten(1, -3)


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Height, width, channels: a picture has fewer channels than rows and columns."""
    return shape[2] < min(shape[:2])
