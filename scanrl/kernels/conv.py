"""The causal depthwise convolution with one kernel per place in the step: one function, three implementations.

    y_t = b^m + sum_i k^m_i x_{t-w+1+i},    m = (place + t) mod M

`B` batch, `L` tokens, `D` channels, `w` window in tokens, `M` places in the step. `reference` (torch, any device, also
float64) is the definition; `native` (C, float32 on the CPU) and `gpu` (Triton, on CUDA) are the fast ones; `choice.py`
says which of them runs.
"""

import torch
from torch import Tensor

from scanrl.kernels import native_conv
from scanrl.kernels.choice import Impl, choose
from scanrl.kernels.inputs import check_fits, check_floating, widen

__all__ = ["causal_conv"]


def causal_conv(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    *,
    past: Tensor | None = None,
    place: Tensor | None = None,
    impl: Impl | None = None,
) -> Tensor:
    """Convolves every channel with the last w tokens, with the kernel that belongs to the place of the output token.

    Args:
        x: inputs (B, L, D).
        kernel: the weights (M, w, D), that of the oldest token first.
        bias: added to the outputs (M, D).
        past: the w-1 tokens before x (B, w-1, D); None is zeros.
        place: that of each row's first token (B,), int64, taken modulo M; None is zeros.
        impl: force an implementation; None follows SCANRL_SCAN, then the automatic choice.

    Returns:
        y (B, L, D) in the dtype of x. Half precision is computed in float32. Gradients, of first order, flow to all
        arguments but `place`.

    Raises:
        TypeError: an argument is no floating-point tensor or mixes float64 with other dtypes, or place is not int64.
        ValueError: a shape or device does not fit, or `impl` or SCANRL_SCAN names no implementation.
        RuntimeError: a forced implementation cannot run here.

    Reference: Kim et al., "Decision ConvFormer", 2024, section 4.2, https://arxiv.org/abs/2310.03022.
    """
    _check(x, kernel, bias, past, place)
    chosen = choose("x", x, impl) if x.numel() else "reference"  # which says what nothing gives
    if chosen == "gpu":
        from scanrl.kernels import gpu_conv  # triton comes with the first tensor that wants it

        return gpu_conv.conv(x, kernel, bias, past, place)
    arguments = widen(x), widen(kernel), widen(bias), widen(past), place
    if chosen == "native":
        return native_conv.conv(*arguments).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _reference(*arguments).to(x.dtype)


def _check(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> None:
    for name, tensor in (
        ("x", x),
        ("kernel", kernel),
        ("bias", bias),
        *((("past", past),) if past is not None else ()),
    ):
        check_floating(name, tensor)
    if x.ndim != 3:
        raise ValueError(f"x: expected shape (B, L, D), got {tuple(x.shape)}")
    batch, _, width = x.shape
    if kernel.ndim != 3 or kernel.shape[2] != width or not kernel.shape[0] * kernel.shape[1]:
        expected = f"(M, w, D) with M, w >= 1 and D = {width} as in x"
        raise ValueError(f"kernel: expected shape {expected}, got {tuple(kernel.shape)}")
    places, window, _ = kernel.shape
    check_fits("kernel", kernel, tuple(kernel.shape), "x", x)
    check_fits("bias", bias, (places, width), "x", x)
    if past is not None:
        check_fits("past", past, (batch, window - 1, width), "x", x)
    if place is not None:
        if not isinstance(place, Tensor) or place.dtype != torch.int64:
            found = place.dtype if isinstance(place, Tensor) else type(place).__name__
            raise TypeError(f"place: expected an int64 tensor, got {found}")
        if tuple(place.shape) != (batch,) or place.device != x.device:
            expected = f"shape {(batch,)} on {x.device}"
            raise ValueError(f"place: expected {expected}, got {tuple(place.shape)} on {place.device}")


def _reference(x: Tensor, kernel: Tensor, bias: Tensor, past: Tensor | None, place: Tensor | None) -> Tensor:
    batch, length, width = x.shape
    places, window, _ = kernel.shape
    past = x.new_zeros(batch, window - 1, width) if past is None else past
    padded = torch.cat([past, x], 1)
    # With no `place` every row is at the same one, and one set of kernels (1, L, D) serves the whole batch.
    start = 0 if place is None else place[:, None]
    m = (start + torch.arange(length, device=x.device)[None]) % places  # (1 or B, L)
    y = bias[m].expand(batch, length, width)
    for i, tap in enumerate(kernel.unbind(1)):  # tap (M, D)
        y = y + padded[:, i : i + length] * tap[m]
    return y
