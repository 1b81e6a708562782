"""Whether the Triton kernels can run here. They are imported by the first call that wants them, and triton with them.

With TRITON_INTERPRET=1 in the environment from the start, triton runs them on the CPU, operation by operation: very
slow, and for tests of their arithmetic only.
"""

from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

__all__ = ["GET_TRITON", "Triton", "detail", "found", "launch"]

GET_TRITON = "pip install triton"
OLDEST = (3, 3)  # the first with tuples in kernels


class Triton(NamedTuple):
    """What there is: `why` says what is wrong and is empty if the kernels can run on a CUDA device."""

    why: str
    interpreted: bool = False  # the kernels then run on the CPU as well


@cache
def found() -> Triton:
    """Looks for triton, once per process; imports it if it is there."""
    if find_spec("triton") is None:
        return Triton(f"triton is not installed ({GET_TRITON})")
    version = metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return Triton(f"triton {version} is older than {'.'.join(map(str, OLDEST))} ({GET_TRITON} --upgrade)")
    from triton.runtime.interpreter import InterpretedFunction

    from scanrl.kernels import gpu_scan_kernels

    # Decided when the kernels were decorated; the variable may have changed since.
    return Triton("", isinstance(gpu_scan_kernels.forward, InterpretedFunction))


def detail(device: str | torch.device) -> str:
    """What the kernels run on, for people."""
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no CUDA device"
    return f"triton {metadata.version('triton')}, {'its interpreter' if found().interpreted else name}"


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel for every place of the grid, on the current device and stream."""
    kernel[grid](*arguments, **constants)
