"""Functions that `torch.func.vmap` cannot see into, called once per slice or once for all slices.

A kernel gets addresses, and `torch.func.vmap` has none to give: its tensors stand for a whole stack of them. Decorated
with `each_slice`, a function may be called under `vmap` all the same:

    @each_slice
    def conv(x, kernel, bias, past, place):
        return _Conv.apply(x, kernel, bias, past, place)

It then runs for one slice after the other, on ordinary tensors and with ordinary autograd, and the results are stacked.
On a CPU that is the right way: a kernel takes all cores for one slice. Outside of `vmap` it is the function itself, at
the cost of one question.

Where a launch costs more than the work, as on a GPU, the function is better called once: with `all_slices` the rows of
all slices are the rows of one batch, and the function takes parameters with an axis for the slices in front.

What is decorated takes its tensors as separate positional arguments, not inside tuples; None and whatever is no tensor
may stand between them. It returns a tensor, or a flat tuple of tensors and None. An `autograd.Function` needs nothing
more: neither `setup_context` nor a `vmap` of its own.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["all_slices", "each_slice", "transformed"]

P = ParamSpec("P")
R = TypeVar("R")


def transformed() -> bool:
    """Whether `torch.func.vmap`, or another transform of its family, is at work."""
    return torch._C._are_functorch_transforms_active()  # what torch.autograd.Function.apply asks; nothing is public


def each_slice(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which under `torch.func.vmap` is called once per slice; see the module for what it may take."""
    return _batched(function, _one_by_one)


def all_slices(parameters: tuple[int, ...]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function one that is called once for all slices of a single `torch.func.vmap`.

    Args:
        parameters: places of the arguments that all rows of a slice share; the function takes them with or without an
            axis for the slices in front. Every other tensor, and every result, has the batch as its first axis.
    """
    return lambda function: _batched(function, partial(_as_one, parameters))


Rule = Callable[..., tuple[Any, Any]]  # (function, slices, dims, arguments) -> results and their dims


def _batched(function: Callable[P, R], rule: Rule) -> Callable[P, R]:
    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> R:
        return _Batched.apply(rule, function, *arguments, **named)

    return called


class _Batched(torch.autograd.Function):
    """Applies a rule. Under `vmap` nothing else of it runs: autograd sees what `function` does, and never this."""

    @classmethod
    def apply(cls, rule: Rule, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        # Torch comes by here again, with no transform left, where none of the arguments is a stack.
        if transformed():
            return super().apply(rule, function, *arguments, **named)
        return function(*arguments, **named)

    @staticmethod
    def forward(rule: Rule, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[1].__name__

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        # Only another transform comes here. It would take the results for constants.
        raise RuntimeError(f"{ctx.name}: expected no transform but torch.func.vmap; impl='reference' takes the others")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
        (rule, function, *arguments), (_, _, *dims) = given, in_dims
        return rule(function, info.batch_size, dims, arguments)


def _one_by_one(function: Callable[..., Any], count: int, dims: list[int | None], arguments: list[Any]) -> Any:
    call = each_slice(function)  # another vmap may be round this one
    slices = [
        call(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, dims, strict=True)))
        for i in range(count)
    ]
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    joined = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*slices, strict=True))
    return joined, tuple(None if part is None else 0 for part in joined)


def _as_one(
    parameters: tuple[int, ...],
    function: Callable[..., Any],
    count: int,
    dims: list[int | None],
    arguments: list[Any],
) -> Any:
    if transformed():
        raise RuntimeError(f"{function.__name__}: expected one torch.func.vmap, got one inside another")
    own = any(dims[i] is not None for i in parameters)
    given = list(arguments)
    for i, (x, dim) in enumerate(zip(arguments, dims, strict=True)):
        if isinstance(x, Tensor) and (own or i not in parameters):
            stack = x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
            given[i] = stack if i in parameters else stack.flatten(0, 1)
    results = function(*given)
    if isinstance(results, Tensor):
        return results.unflatten(0, (count, -1)), 0
    return tuple(result.unflatten(0, (count, -1)) for result in results), (0,) * len(results)
