"""What a policy carries from one step to the next: one class for each way, native, carried, replayed or windowed.

Symbols: `B` streams, `K` steps of context, `O`/`A` observation/action shape.

Acting feeds exactly the training sequence. Each step feeds the *tail* of the last one (`a`, and `r` where the layout
has it), puts the initial state into the rows that start an episode, feeds the *head* of this one (`R`, `s`) and reads
the action at its last token. The same rule serves every layout. A model that predicts its return-to-go reads it at `s`
and is fed it as the R behind `s`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanrl.batch import Batch
from scanrl.graphs import CudaGraph, ReplayedStep, graphs_wanted
from scanrl.kernels import ScanChoice, scan_choice
from scanrl.kernels.native_step import StaleWeights
from scanrl.models.build import Model, ModelCode
from scanrl.nn import State, replace_rows
from scanrl.nn.program import NoNativeStep
from scanrl.types import Context

__all__ = [
    "CarriedStreams",
    "NativeStreams",
    "ReplayedStreams",
    "Step",
    "StepImpl",
    "Streams",
    "WindowStreams",
    "begin",
    "step_choice",
]


class Step(NamedTuple):
    """What the streams saw and did, in raw units; the first row of every pair belongs to the step before."""

    last_action: np.ndarray  # (B, *A) float32 or (B,) int64
    last_timestep: np.ndarray  # (B,) int64
    last_return_to_go: np.ndarray  # (B,) float64
    reward: np.ndarray  # (B,) float32: what the last action earned; 0 in rows that start
    first: np.ndarray  # (B,) bool: rows that start an episode
    observation: np.ndarray  # (B, *O) float32; (B, *O) or (B, k, *O) uint8 if images
    timestep: np.ndarray  # (B,) int64
    return_to_go: np.ndarray  # (B,) float64


class Streams(ABC):
    """A batch of `count` streams of one model."""

    count: int

    @abstractmethod
    def step(self, x: Step) -> np.ndarray | None:
        """Actions `(B, *A)` float32 or `(B,)` int64, in environment units; `None` if an observation or a reward is not
        finite. That, or what fails, changes no stream."""

    @abstractmethod
    def copy(self, generator: torch.Generator | None) -> Streams:
        """Streams that go on from here by themselves, drawing with a generator of their own."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Memory of all streams."""


StepImpl = Literal["native", "reference"]
_ATTEMPTS = 10  # to copy weights that another thread may be changing


def begin(
    model: Model,
    count: int,
    context: Context,
    generator: torch.Generator | None = None,
    impl: StepImpl | None = None,
    spare: Streams | None = None,
) -> Streams:
    """`count` fresh streams; actions are drawn with the generator, if there is one. In the first step all rows start.

    Streams that nobody needs any more may be taken as `spare`, with what was recorded for them.

    Raises:
        RuntimeError: the native step was asked for by `impl` and cannot run.
    """
    if context != "recurrent":
        return WindowStreams(model, count, context, generator)
    if impl != "reference":
        code, choice = _native_code(model, sample=generator is not None)
        if code is not None:
            return NativeStreams(model, count, generator, code)
        if impl == "native":
            raise RuntimeError(f"the native step was asked for, but: {choice.reason}")
        if generator is None and graphs_wanted(model.norm.weight.device):
            if isinstance(spare, ReplayedStreams) and spare.model is model and spare.count == count:
                return spare  # what it still carries is replaced in all rows
            return ReplayedStreams(model, count)
    return CarriedStreams(model, count, generator)


def step_choice(model: Model, *, sample: bool = False) -> ScanChoice:
    """Whether a policy that carries its state steps natively (`native`) or in torch (`reference`), and why.

    Native steps need float32 weights on the CPU, the C extension, SCANRL_SCAN not to say otherwise, and a native form
    of every module; where one is missing the whole policy steps in torch.
    """
    return _native_code(model, sample=sample)[1]


def _native_code(model: Model, *, sample: bool) -> tuple[ModelCode | None, ScanChoice]:
    choice = scan_choice("cpu")
    if choice.impl != "native":
        return None, choice
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            reason = f"{name} is {tensor.dtype} on {tensor.device}; the native step takes float32 on the CPU"
            return None, ScanChoice("reference", reason, f"torch {torch.__version__}")
    try:
        return model.lower(sample=sample), choice
    except NoNativeStep as error:
        return None, ScanChoice("reference", str(error), f"torch {torch.__version__}")


class NativeStreams(Streams):
    """Streams whose state is carried by one call of C per step.

    The weights are copied when the streams begin, and again when an update has changed them since. Other streams of the
    batch have no influence on a result, not even on its rounding.
    """

    def __init__(self, model: Model, count: int, generator: torch.Generator | None, code: ModelCode) -> None:
        self._model, self._generator, self.count = model, generator, count
        self._native = code.begin(count)
        self._return_in_head = "R" in model.config.layout[: model.config.head_letters]

    def step(self, x: Step) -> np.ndarray | None:
        if self._generator is None:
            return self._run(x)
        take_back = self._native.undo()  # drawing may fail after the streams have moved
        try:
            with torch.inference_mode():
                outputs = self._run(x)
                if outputs is None:
                    return None
                actions = self._model.head.choose(torch.from_numpy(outputs), self._generator)
                return self._model.tokens.unscale_actions(actions).numpy()
        except BaseException:
            take_back()
            raise

    def copy(self, generator: torch.Generator | None) -> NativeStreams:
        other = copy(self)
        other._native, other._generator = self._native.copy(), generator
        return other

    def state_bytes(self) -> int:
        return self._native.nbytes

    def _run(self, x: Step) -> np.ndarray | None:
        wanted = (x.return_to_go if self._return_in_head else x.last_return_to_go).astype(np.float32)
        for _ in range(_ATTEMPTS):
            try:
                native, times = self._native, (x.last_timestep, x.timestep)
                return native(x.first, *times, wanted, x.observation, x.last_action, x.reward)
            except StaleWeights:
                code: Any = self._model.lower(sample=self._generator is not None)  # of the same kind as before
                self._native.load(code)
        raise RuntimeError(f"the weights changed {_ATTEMPTS} times during one step; stop training while a policy acts")


class CarriedStreams(Streams):
    """Streams whose state is carried by the modules' own forward, on any device: what `NativeStreams` must equal."""

    def __init__(self, model: Model, count: int, generator: torch.Generator | None) -> None:
        self._model, self._generator, self.count = model, generator, count
        with torch.inference_mode():
            self._state = self._initial = model.initial_state(count)

    @torch.inference_mode()
    def step(self, x: Step) -> np.ndarray | None:
        if not _finite(x):
            return None
        values = _tensors(x, self._model, self._model.norm.weight.device)
        hidden, state = _carry(self._model, self._initial, self._state, values)
        actions = self._model.decide(hidden, self._generator).cpu().numpy()
        self._state = state
        return actions

    def copy(self, generator: torch.Generator | None) -> CarriedStreams:
        other = copy(self)  # tensors are replaced and never written to
        other._generator = generator
        return other

    def state_bytes(self) -> int:
        return _bytes(self._state)


class ReplayedStreams(Streams):
    """Streams on a CUDA device whose step is recorded as a graph: the same as `CarriedStreams`, in one launch.

    Args:
        state: where they go on from; `None` is the beginning.
    """

    def __init__(self, model: Model, count: int, state: State | None = None) -> None:
        self.model, self.count = model, count
        device = model.norm.weight.device
        with torch.inference_mode():
            self._initial = model.initial_state(count)
            state = self._initial if state is None else state
            self._replayed = ReplayedStep(self._advance, state, "the acting step", CudaGraph(device), device)

    @torch.inference_mode()
    def step(self, x: Step) -> np.ndarray | None:
        if not _finite(x):
            return None
        (actions,) = self._replayed(*_tensors(x, self.model, torch.device("cpu")).values())
        return actions.cpu().numpy()

    def copy(self, generator: torch.Generator | None) -> ReplayedStreams:
        assert generator is None
        return ReplayedStreams(self.model, self.count, self._replayed.state)

    def state_bytes(self) -> int:
        return _bytes(self._replayed.state)

    def _advance(self, state: State, *columns: Tensor) -> tuple[tuple[Tensor, ...], State]:
        values = dict(zip(Step._fields, columns, strict=True))
        hidden, state = _carry(self.model, self._initial, state, values)
        return (self.model.decide(hidden),), state


def _carry(model: Model, initial: State, state: State, values: dict[str, Tensor]) -> tuple[Tensor, State]:
    """The stack's output `(B, D)` where the action of a step is read, and the state after it."""
    layout = model.config.layout
    seen, head = layout.index("s") + 1, model.config.head_letters
    if layout[head:]:
        tail = {"a": values["last_action"], "r": values["reward"], "R": values["last_return_to_go"]}
        state = model.feed([(c, tail[c]) for c in layout[head:]], values["last_timestep"], state)[1]
    state = replace_rows(state, values["first"], initial)
    # An `a` or `r` before `s` would be this step's, which is not known yet.
    now = {"R": values["return_to_go"], "s": values["observation"]}
    if model.config.returns == "predicted":
        hidden, state = model.feed([(c, now[c]) for c in layout[:seen]], values["timestep"], state)
        return model.feed([("R", model.predict_return(hidden))], values["timestep"], state)
    return model.feed([(c, now[c]) for c in layout[:head]], values["timestep"], state)


class WindowStreams(Streams):
    """The last `K` steps of every row, recomputed at each step; aligned to the left as in training (padding right).

    Predicted returns of earlier steps stay what they were when those steps were acted on.

    Args:
        context: K, or `"elastic"`: windows that begin at the oldest of the last K steps (K of training), two steps
            later, and so on; each row acts on the one whose predicted return is highest, the longest of equals.
    """

    STRIDE = 2  # steps between candidate starts, as in Elastic Decision Transformer's code

    def __init__(
        self,
        model: Model,
        count: int,
        context: int | Literal["elastic"],
        generator: torch.Generator | None,
    ) -> None:
        self._model, self._generator, self.count = model, generator, count
        self._elastic = context == "elastic"
        steps = model.config.context if context == "elastic" else context
        self._device = model.norm.weight.device
        spec = model.spec
        kind = torch.int64 if spec.action_dtype is np.int64 else model.norm.weight.dtype

        real = model.norm.weight.dtype
        stack = (spec.frame_stack,) if spec.frame_stack > 1 else ()

        def zeros(*shape: int, dtype: torch.dtype = real) -> Tensor:
            return torch.zeros(count, steps, *shape, dtype=dtype, device=self._device)

        self._columns = {
            "observations": zeros(*stack, *spec.observation_shape, dtype=torch.uint8 if spec.is_image else real),
            "actions": zeros(*spec.action_shape, dtype=kind),
            "rewards": zeros(),
            "returns_to_go": zeros(),
            "timesteps": zeros(dtype=torch.int64),
        }
        self._length = torch.zeros(count, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def step(self, x: Step) -> np.ndarray | None:
        if not _finite(x):
            return None
        columns, length = self._pushed(_tensors(x, self._model, self._device))
        windows, count = {name: column[:, : int(length.max())] for name, column in columns.items()}, length
        if self._model.config.returns == "predicted":
            returns, start = self._predict(windows, length)
            columns["returns_to_go"][torch.arange(len(length), device=self._device), length - 1] = returns
            windows, count = _from(windows, start), length - start
        present = self._read(windows, count, self._model.config.read_at)
        actions = self._model.decide(present, self._generator).cpu().numpy()
        self._columns, self._length = columns, length
        return actions

    def copy(self, generator: torch.Generator | None) -> WindowStreams:
        other = copy(self)  # tensors are replaced and never written to
        other._generator = generator
        return other

    def state_bytes(self) -> int:
        return _bytes(tuple(self._columns.values()))

    def _predict(self, columns: dict[str, Tensor], length: Tensor) -> tuple[Tensor, Tensor]:
        """The highest predicted return of the present step `(B,)`, and where its window starts `(B,)`."""
        best = torch.full_like(columns["returns_to_go"][:, 0], -torch.inf)
        start = torch.zeros_like(length)
        for first in range(0, columns["rewards"].shape[1] if self._elastic else 1, self.STRIDE):
            later = {name: column[:, first:] for name, column in columns.items()}
            hidden = self._read(later, (length - first).clamp(min=1), self._model.config.layout.index("s"))
            returns = self._model.predict_return(hidden)
            better = (returns > best) & (length > first)
            best, start = torch.where(better, returns, best), start.masked_fill(better, first)
        return best, start

    def _read(self, columns: dict[str, Tensor], length: Tensor, place: int) -> Tensor:
        """The stack's output `(B, D)` at one token of the last step of windows, `length` `(B,)` steps of each row."""
        mask = torch.arange(columns["rewards"].shape[1], device=self._device) < length[:, None]
        hidden, _ = self._model.stack(self._model.tokens(Batch(**columns, mask=mask)))
        at_place = hidden[:, place :: self._model.config.period]
        return at_place[torch.arange(len(length), device=self._device), length - 1]

    def _pushed(self, x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The history with the last step completed and a new step begun; rows that start keep nothing."""
        columns = {name: column.clone() for name, column in self._columns.items()}
        starts, context = x["first"], columns["rewards"].shape[1]
        rows = torch.arange(len(starts), device=starts.device)
        last = (self._length - 1).clamp(min=0)
        columns["actions"][rows, last] = x["last_action"]
        columns["rewards"][rows, last] = x["reward"]
        full = self._length == context
        for name, column in columns.items():
            moved = torch.where(full.view(-1, *(1,) * (column.ndim - 1)), column.roll(-1, 1), column)
            columns[name] = moved.masked_fill(starts.view(-1, *(1,) * (column.ndim - 1)), 0)
        length = torch.where(starts, 1, (self._length + 1).clamp(max=context))
        new = length - 1
        columns["observations"][rows, new] = x["observation"]
        columns["returns_to_go"][rows, new] = x["return_to_go"]
        columns["timesteps"][rows, new] = x["timestep"]
        columns["actions"][rows, new] = 0
        columns["rewards"][rows, new] = 0.0
        return columns, length


def _from(columns: dict[str, Tensor], start: Tensor) -> dict[str, Tensor]:
    """Columns `(B, K, ...)` moved to the left, each row by its `start` `(B,)`; the last entry fills the end."""
    rows, steps = columns["rewards"].shape
    taken = (start[:, None] + torch.arange(steps, device=start.device)).clamp(max=steps - 1)
    every = torch.arange(rows, device=start.device)[:, None]
    return {name: column[every, taken] for name, column in columns.items()}


def _finite(x: Step) -> bool:
    return bool(np.isfinite(x.observation).all() and np.isfinite(x.reward).all())


def _tensors(x: Step, model: Model, device: torch.device) -> dict[str, Tensor]:
    """The step on a device, its real numbers in the model's precision."""
    dtype = model.norm.weight.dtype
    tensors = ((name, torch.from_numpy(values)) for name, values in x._asdict().items())
    return {n: t.to(device, dtype if t.is_floating_point() else t.dtype) for n, t in tensors}


def _bytes(tree: tuple) -> int:
    return sum(x.nbytes if isinstance(x, Tensor) else _bytes(x) for x in tree)
