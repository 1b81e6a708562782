"""Triton kernels under `torch.func.vmap`: several models of one shape as one, with no more launches than for one.

`torch.func.vmap` cannot see into a kernel. The rows of all slices are made the rows of one batch, parameters become
stacks with an axis S in front, and the function is called once, with ordinary tensors and ordinary autograd.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["over_stacks"]

P = ParamSpec("P")
R = TypeVar("R")


def over_stacks(parameters: tuple[int, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function of separate positional arguments one that may be called under `torch.func.vmap`.

    Args:
        parameters: places of the arguments that all rows of a slice share, which the function takes with or without an
            axis for the slices in front. Every other tensor has the batch as its first axis, and so have its results.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> R:
            return _OverStacks.apply(function, parameters, *arguments, **named)

        return called

    return decorated


class _OverStacks(torch.autograd.Function):
    """The rule. Under `vmap` nothing else of it runs: autograd sees what `function` does, and never this."""

    @classmethod
    def apply(cls, function: Callable[..., Any], parameters: tuple[int, ...], *arguments: Any, **named: Any) -> Any:
        # The question torch.autograd.Function.apply itself asks; torch has no public one.
        if torch._C._are_functorch_transforms_active():
            return super().apply(function, parameters, *arguments, **named)
        return function(*arguments, **named)

    @staticmethod
    def forward(function: Callable[..., Any], parameters: tuple[int, ...], *arguments: Any) -> Any:
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
        (function, parameters, *arguments), (_, _, *dims) = given, in_dims
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(f"{function.__name__}: expected one torch.func.vmap, got one inside another")
        own = any(dims[i] is not None for i in parameters)
        for i, (x, dim) in enumerate(zip(arguments, dims, strict=True)):
            if isinstance(x, Tensor) and (own or i not in parameters):
                stack = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                arguments[i] = stack if i in parameters else stack.flatten(0, 1)
        results = function(*arguments)
        every = results if isinstance(results, tuple) else (results,)
        stacks = tuple(result.unflatten(0, (info.batch_size, -1)) for result in every)
        return (stacks, (0,) * len(stacks)) if isinstance(results, tuple) else (stacks[0], 0)
