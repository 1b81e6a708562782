"""Functions that `torch.func.vmap` cannot see into, called once per slice.

A kernel gets addresses, and `torch.func.vmap` has none to give: its tensors stand for a whole stack of them. Decorated
with `each_slice`, a function may be called under `vmap` all the same:

    @each_slice
    def conv(x, kernel, bias, past, place):
        return _Conv.apply(x, kernel, bias, past, place)

It then runs for one slice after the other, on ordinary tensors and with ordinary autograd, and the results are stacked.
On a CPU that is the right way: a kernel takes all cores for one slice. Outside of `vmap` it is the function itself, at
the cost of one question.

What is decorated takes its tensors as separate positional arguments, not inside tuples; None and whatever is no tensor
may stand between them. It returns a tensor, or a flat tuple of tensors and None. An `autograd.Function` needs nothing
more: neither `setup_context` nor a `vmap` of its own.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["each_slice", "transformed"]

P = ParamSpec("P")
R = TypeVar("R")


def transformed() -> bool:
    """Whether `torch.func.vmap`, or another transform of its family, is at work."""
    return torch._C._are_functorch_transforms_active()  # what torch.autograd.Function.apply asks; nothing is public


def each_slice(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which under `torch.func.vmap` is called once per slice; see the module for what it may take."""

    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> R:
        return _EachSlice.apply(function, *arguments, **named)

    return called


class _EachSlice(torch.autograd.Function):
    """The rule. Under `vmap` nothing else of it runs: autograd sees what the slices do, and never this."""

    @classmethod
    def apply(cls, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        # Torch comes by here again, with no transform left, where none of the arguments is a stack.
        if transformed():
            return super().apply(function, *arguments, **named)
        return function(*arguments, **named)

    @staticmethod
    def forward(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0].__name__

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        # Only another transform comes here. It would take the results for constants.
        raise RuntimeError(f"{ctx.name}: expected no transform but torch.func.vmap; impl='reference' takes the others")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
        (function, *arguments), (_, *dims) = given, in_dims
        call = each_slice(function)  # another vmap may be round this one
        slices = [
            call(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(slices[0], Tensor):
            return torch.stack(slices), 0
        joined = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*slices, strict=True))
        return joined, tuple(None if part is None else 0 for part in joined)
