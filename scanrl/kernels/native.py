"""The C extension: loading it, choosing an instruction set, cutting work into tasks, and handing tensors over.

Everything is float32. The extension gets addresses and strides; memory is allocated and kept alive on this side.
"""

import os
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch  # before _native: torch brings the OpenMP runtime that the extension then shares
from torch import Tensor

__all__ = ["Isa", "Plan", "address", "extension", "isa", "keep_memory", "module", "plan", "rows", "strided", "threads"]

ABI = 7  # of the calls into the extension; raise it here and in native.c whenever one of them changes
TASKS = 32  # pieces of work to aim at: enough for any sensible number of threads, few enough to add up


class Isa(NamedTuple):
    """One build of the kernel: `lanes` channels per vector, `tile` states at a time."""

    number: int  # the argument `isa` of the extension
    name: str
    lanes: int
    tile: int


@cache
def extension() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and why it cannot be used."""
    # The extension is optional, so its absence is an ordinary state and not an error.
    try:
        from scanrl.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        return None, f"the C extension is not available ({error})"
    found = getattr(_native, "abi", 0)
    if found != ABI:
        # An old build beside newer Python would read its arguments wrongly, and compute garbage without a word.
        return (
            None,
            f"the C extension is of another version of the source (abi {found}, not {ABI})",
        )
    return _native, ""


def module() -> ModuleType:
    """The compiled module; RuntimeError if it cannot be used."""
    found, why = extension()
    if found is None:
        raise RuntimeError(why)
    return found


@cache
def isa() -> Isa:
    """The instruction set used: the best one this processor has, or what SCANRL_ISA names.

    Raises: RuntimeError if SCANRL_ISA names one that is unknown or that this processor lacks.
    """
    builds = module().isas()
    here = [Isa(i, name, lanes, tile) for i, (name, lanes, tile, runs) in enumerate(builds) if runs]
    wanted = os.environ.get("SCANRL_ISA", "")
    for found in here:
        if wanted in ("", found.name):
            return found
    known = wanted in [name for name, *_ in builds]
    problem = "this processor lacks it" if known else "there is no such instruction set"
    raise RuntimeError(f"SCANRL_ISA={wanted}: {problem}; use {' or '.join(found.name for found in here)}, or unset it")


def keep_memory() -> bool:
    """Lets this process keep the memory it frees, where the C library can; False where nothing changed.

    An update allocates and frees tens of megabytes. By default glibc gives them back each time, and takes pages again
    that the system has to fill with zeros first: up to half the time of an update.
    """
    return extension()[0] is not None and module().keep_memory()


def threads() -> int:
    """How many threads a kernel may use: torch's setting, or 1 if the extension was built without OpenMP."""
    return torch.get_num_threads() if module().openmp else 1


class Plan(NamedTuple):
    """How the work is cut: `slab` batch rows times `group` channel blocks make one task. Shapes alone decide."""

    slab: int
    group: int
    slabs: int
    groups: int
    threads: int


def plan(batch: int, channels: int, *, small: bool, least: int = 1) -> Plan:
    """The cut of a batch of rows of channels.

    Args:
        batch: rows.
        channels: of each row.
        small: so little work that waking a second thread costs more than it saves.
        least: rows of a slab that are worth a part of a gradient of their own.
    """
    blocks = -(-channels // isa().lanes)
    slab = max(least, batch // TASKS)
    slabs = -(-batch // slab)
    group = -(-blocks // min(blocks, -(-TASKS // slabs)))
    return Plan(slab, group, slabs, -(-blocks // group), 1 if small else threads())


def rows(x: Tensor) -> Tensor:
    """x (B, L, *) as the kernels can read it: any strides, but a contiguous last axis."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def address(x: Tensor | None) -> int:
    """0 stands for None."""
    return 0 if x is None else x.data_ptr()


def strided(x: Tensor | None) -> tuple[int, int, int]:
    """Address and strides of the first two axes of x (B, L, *)."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))
