"""`Replayed`: a function on a CUDA device that is recorded as a graph and then replayed with one launch.

A training update or an acting step of these models is hundreds of small kernels, and launching them takes longer than
running them. A CUDA graph launches all of them at once. SCANRL_GRAPHS=off keeps everything eager.

What may be recorded: work of fixed shapes on tensors that stay where they are, that waits for nothing on the host (no
`.item()`, no copy to it, no shape that depends on data) and draws random numbers from the device's default generator
only, which torch registers with every graph. A replay reads and writes the same addresses, advances that generator as
the eager function would, and gives the same bits.

Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CudaGraph", "Graph", "Replayed", "ReplayedStep", "graphs_wanted", "leaves"]

WARM_UP = 3  # eager calls before the recording: they compile kernels and allocate what libraries keep
ALIGNMENT = 16  # bytes; vector loads want it

Outputs = tuple[Tensor, ...]
Tree = Any  # a tensor, or a (named) tuple of trees


def graphs_wanted(device: torch.device | str) -> bool:
    """Whether work on this device is to be recorded: on CUDA, unless SCANRL_GRAPHS is off.

    Raises:
        ValueError: SCANRL_GRAPHS is neither on nor off.
    """
    wanted = os.environ.get("SCANRL_GRAPHS") or "on"
    if wanted not in ("on", "off"):
        raise ValueError(f"SCANRL_GRAPHS: expected on or off, got {wanted!r}")
    return torch.device(device).type == "cuda" and wanted == "on"


class Graph(Protocol):
    """What `Replayed` needs of a device."""

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """Runs it eagerly, where the recording will."""
        ...

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        """Records it, which computes nothing; returns the tensors that replays fill. RuntimeError if it cannot."""
        ...

    def replay(self) -> None:
        """Does what was recorded."""
        ...


class CudaGraph:
    """One graph on one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graph = torch.cuda.CUDAGraph()
        # Recording is not allowed on the default stream, and autograd remembers on which stream it saw a parameter
        # first: eager calls before the recording go to the same stream.
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                outputs = function()
            here.wait_stream(self._stream)
        for output in outputs:  # whoever reads it does so on the other stream
            output.record_stream(here)
        return outputs

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            state = generator.clone_state()
            try:
                # Other threads (a server's, a tracker's) may go on with what the device forbids to this one meanwhile.
                with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                    return function()
            except RuntimeError:
                # A recording that breaks off leaves its stream current and the generator waiting for its end. (Graphs
                # recorded before go on drawing from the state that they know.)
                torch.cuda.set_stream(here)
                generator.graphsafe_set_state(state)
                raise

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self._graph.replay()


class Replayed:
    """A function of CPU tensors that computes on a CUDA device: eager at first, then recorded, then replayed.

    The first calls are ordinary ones that count; then every call copies its arguments to the device, in one piece, and
    replays. Arguments of other shapes or dtypes than the first ones, and a function that cannot be recorded, run
    eagerly (the latter with one warning); results are the same.

    Args:
        function: takes the arguments as tensors on the device and returns tensors there, without gradient. It may
            change other tensors in place; what it reads besides must stay where it is, once it has been called.
        what: its name in the warning.
        graph: what records it.
        device: where it computes.

    The tensors returned belong to the graph: the next call overwrites them.
    """

    def __init__(self, function: Callable[..., Outputs], what: str, graph: Graph, device: torch.device | str) -> None:
        self._function, self._what, self._graph = function, what, graph
        self._device = torch.device(device)
        self._arguments: _Arguments | None = None
        self._calls = 0
        self._outputs: Outputs | None = None
        self.recorded: bool | None = None  # None: not yet; False: it could not be

    def __call__(self, *arguments: Tensor) -> Outputs:
        if self._arguments is None:
            self._arguments = _Arguments(arguments, self._device)
        if self.recorded is False or not self._arguments.fit(arguments):
            return self._function(*(x.to(self._device) for x in arguments))
        inputs = self._arguments.put(arguments)
        if self.recorded is None:
            if self._calls < WARM_UP:
                self._calls += 1
                return self._graph.warm_up(lambda: self._function(*inputs))
            if not self._record(inputs):
                return self._function(*inputs)
        self._graph.replay()
        assert self._outputs is not None
        return self._outputs

    def _record(self, inputs: Sequence[Tensor]) -> bool:
        try:
            self._outputs = self._graph.record(lambda: self._function(*inputs))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            message = f"{self._what}: it cannot be recorded as a CUDA graph and runs eagerly, which is slower: {reason}"
            warnings.warn(f"{message} (SCANRL_GRAPHS=off does not try)", RuntimeWarning, stacklevel=4)
            self.recorded = False
            return False
        self.recorded = True
        return True


class ReplayedStep:
    """A step of something that has a state, recorded with its state, which stays on the device from step to step.

    Args:
        step: takes the state and the arguments, gives outputs and the new state; changes nothing in place.
        state: the first one, a tree of tensors; it is copied.
        what, graph, device: as in `Replayed`.

    Attributes:
        state: the present one. Every step writes the new one over it.
    """

    def __init__(
        self, step: Callable[..., tuple[Outputs, Tree]], state: Tree, what: str, graph: Graph, device: torch.device
    ) -> None:
        self._step, self.state = step, _cloned(state)
        self._replayed = Replayed(self._advance, what, graph, device)

    def __call__(self, *arguments: Tensor) -> Outputs:
        """The outputs for CPU tensors; the next call overwrites them."""
        return self._replayed(*arguments)

    def _advance(self, *arguments: Tensor) -> Outputs:
        outputs, after = self._step(self.state, *arguments)
        for place, value in zip(leaves(self.state), leaves(after), strict=True):
            place.copy_(value)
        return outputs


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in their order."""
    return [tree] if isinstance(tree, Tensor) else [leaf for part in tree for leaf in leaves(part)]


def _cloned(tree: Tree) -> Tree:
    if isinstance(tree, Tensor):
        return tree.clone()
    parts = [_cloned(part) for part in tree]
    # A NamedTuple takes its fields one by one, a plain tuple all at once.
    return tuple(parts) if type(tree) is tuple else type(tree)(*parts)


class _Arguments:
    """Memory for arguments, at the same place on the device every time and filled with one copy."""

    def __init__(self, examples: Sequence[Tensor], device: torch.device) -> None:
        self._forms = [(x.shape, x.dtype) for x in examples]
        starts, size = [], 0
        for x in examples:
            starts.append(size)
            size += -(-x.numel() * x.element_size() // ALIGNMENT) * ALIGNMENT
        cuda = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=cuda)
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        # Pinned memory is read after the copy was asked for: it must not be written again before.
        self._sent = torch.cuda.Event() if cuda else None
        self._from, self._to = (
            [_view(memory, start, x) for start, x in zip(starts, examples, strict=True)]
            for memory in (self._host, self._device)
        )

    def fit(self, arguments: Sequence[Tensor]) -> bool:
        """Whether they have the shapes and dtypes of the first ones."""
        return [(x.shape, x.dtype) for x in arguments] == self._forms

    def put(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The arguments on the device."""
        if self._sent is not None:
            self._sent.synchronize()
        for place, x in zip(self._from, arguments, strict=True):
            place.copy_(x)
        self._device.copy_(self._host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device.device))
        return self._to


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """The bytes of `memory` from `start` on as a tensor of the form of `like`."""
    return memory[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
