"""`Policy`: a decision model in an environment, for one stream or many at once.

Symbols: `B` streams, `K` steps of context, `O`/`A` observation/action shape.

This file checks what an environment gives and keeps count of returns and steps, in numpy alone: for one stream the
whole step takes tens of microseconds. What the streams carry, and how it moves on, is in `scanrl.streams`.
"""

from __future__ import annotations

import copy
import math
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch

from scanrl.checkpoint import load_checkpoint
from scanrl.data.histories import HistoryOrder
from scanrl.kernels import ScanChoice
from scanrl.models.build import Model
from scanrl.models.pretrained import PretrainedModel
from scanrl.recall import QueryStreams, RescannedStreams
from scanrl.streams import Step, StepImpl, Streams, begin, step_choice
from scanrl.structure import flat_observations, structured_actions
from scanrl.types import Context, DataError, Spec

__all__ = ["Forget", "Policy"]

Forget = Literal["episode", "task"]
"""What ends the memory of a stream."""


class Policy:
    """Acts with a `DecisionModel`, in raw environment units.

    Args:
        model: the network; put into evaluation mode.
        target_return: return to ask for, raw units; `None` takes the best return of the training data. A model
            without return-to-go in its layout takes none, nor does one that predicts it.
        context: `"recurrent"`, a number of steps, or `"elastic"` for a model that predicts its return; see `Context`.
        sample: draw actions from the head's distribution instead of taking its mode.
        seed: of the sampling generator.
        forget: when a stream loses what it carries: at every `"episode"`, or only at `reset`, with a new `"task"`. Then
            `first` still restarts the count of steps and the return to ask for, as in training on learning histories,
            and `rewards` is read where it is true as well: what the last action of the episode before earned.
        rescan: with `forget="task"`, make the state anew at the start of every episode from so many of the last
            episodes; `None` carries it on for ever.
        rescan_order: of those episodes: `"learning"`, as they were lived through, or `"return"`, the worst first.
        impl: force the `"native"` or the `"reference"` (torch) form of the step where the state is carried; `None`
            takes the native one where it can run. A forced one that cannot raises RuntimeError when streams begin.

    One policy serves one caller at a time: calls from several threads are serialised.
    """

    def __init__(
        self,
        model: Model,
        *,
        target_return: float | None = None,
        context: Context = "recurrent",
        sample: bool = False,
        seed: int = 0,
        forget: Forget = "episode",
        rescan: int | None = None,
        rescan_order: HistoryOrder = "learning",
        impl: StepImpl | None = None,
    ) -> None:
        predicts = model.config.returns == "predicted"
        elastic = context == "elastic" and predicts
        if context != "recurrent" and (model.config.subgoal_steps or model.config.query):
            kind = "a query" if model.config.query else "sub-goals"
            raise DataError(f"context: expected 'recurrent' for a model with {kind}, got {context!r}")
        if context != "recurrent" and not elastic and (not isinstance(context, int) or context < 1):
            others = "'recurrent', 'elastic' or a number" if predicts else "'recurrent' or a number of steps"
            why = " (this model predicts no return)" if context == "elastic" else ""
            raise DataError(f"context: expected {others}, got {context!r}{why}")
        if impl not in (None, *get_args(StepImpl)):
            raise DataError(f"impl: expected one of {', '.join(get_args(StepImpl))}, got {impl!r}")
        if forget not in get_args(Forget):
            raise DataError(f"forget: expected one of {', '.join(get_args(Forget))}, got {forget!r}")
        if rescan is not None:
            _check_rescan(model, rescan, rescan_order, context, forget)
        self.model = model.eval()
        self.forget: Forget = forget
        self.rescan: int | None = rescan
        self.rescan_order: HistoryOrder = rescan_order
        if rescan is not None:
            if impl == "native":
                raise DataError("impl: expected reference for rescan, got 'native'")
            impl = "reference"
        self._impl: StepImpl | None = impl
        self.spec = model.spec
        self.context: Context = context
        self.target_return = self._target(target_return)
        self._device = next(model.parameters()).device
        self._generator = torch.Generator(self._device) if sample else None
        self._seed = seed
        self._streams: Streams | None = None
        self._spare: Streams | None = None  # those before a reset
        self._lock = threading.Lock()
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        target_return: float | None = None,
        context: Context = "recurrent",
        device: torch.device | str = "cpu",
        sample: bool = False,
        seed: int = 0,
        forget: Forget = "episode",
        rescan: int | None = None,
        rescan_order: HistoryOrder = "learning",
    ) -> Policy:
        """The policy of a run folder (its latest checkpoint) or of one checkpoint folder.

        Raises:
            DataError: there is no checkpoint at `path`.
            CorruptFile: the checkpoint is not what its manifest says.
        """
        model = load_checkpoint(path).model().to(device)
        memory: dict[str, Any] = {"forget": forget, "rescan": rescan, "rescan_order": rescan_order}
        return cls(model, target_return=target_return, context=context, sample=sample, seed=seed, **memory)

    def with_target(self, target_return: float) -> Policy:
        """The same model asking for another return, with no stream begun.

        Raises:
            DataError: the target is not finite, or the model reads no return-to-go.
        """
        other = copy.copy(self)
        other.target_return = self._target(target_return)
        other.reset()
        return other

    def reset(self, count: int | None = None) -> None:
        """Forget every stream and prepare `count` fresh ones; `None` waits for the first `act` to tell how many.

        Sampling starts over as well: what follows depends on the seed and on what is seen, not on what was before.
        """
        with self._lock:
            self._spare, self._streams = self._streams or self._spare, None
            self._last: _Last | None = None  # None: all rows start
            if self._generator is not None:
                self._generator.manual_seed(self._seed)
            if count is not None:
                self._streams = self._begun(count)

    def act(self, observations: Any, rewards: Any = 0.0, first: Any = False, *, target_return: Any = None) -> Any:
        """Actions for the present observations.

        Args:
            observations: `(B, *O)`, or `(*O)` for a single stream; raw units. A dictionary where the environment has
                one, with `(B, ...)` or `(...)` in every entry.
            rewards: `(B,)` or a number: what the previous action earned. Ignored in rows that start.
            first: `(B,)` bool or a bool: rows in which an episode starts now. All rows do after `reset`.
            target_return: `(B,)` or a number, for rows that start now; the policy's own by default.

        Returns:
            `(B, A)` float32, or `(B,)` int64 if discrete; without the batch axis for a single stream. For an action of
            several parts, what the environment's space has: a dictionary or tuple of such arrays, or `(B, A)` int64.

        Raises:
            DataError: a wrong shape, a value that is not finite, or another number of streams than before.
        """
        if self.spec.observation_parts:
            observations = flat_observations(self.spec, observations)
        seen = _pixels(observations) if self.spec.is_image else _array("observations", observations, np.float32)
        single = seen.shape == self.spec.observation_shape
        with self._lock:
            step = self._check(seen[None] if single else seen, rewards, first, target_return)
            streams = self._streams or self._begun(len(step.observation))
            actions = streams.step(step)
            if actions is None:
                _require_finite("observations", step.observation)
                _require_finite("rewards", step.reward)
            actions = cast(np.ndarray, actions)
            # Everything has been computed: only now does the policy move on, so that a failure changes nothing.
            self._streams = streams
            self._last = _Last(actions, step.timestep, step.return_to_go)
            self._images = step.observation
        own = actions[0].copy() if single else actions.copy()  # the caller may write to it
        return structured_actions(self.spec, own) if self.spec.action_parts else own

    def step_choice(self) -> ScanChoice:
        """Whether steps are native or in torch, and why."""
        if self._impl == "reference":
            return ScanChoice("reference", "asked for by impl", f"torch {torch.__version__}")
        if self.context == "recurrent":
            return step_choice(self.model, sample=self._generator is not None)
        steps = f"{self.model.config.context} or fewer" if self.context == "elastic" else self.context
        return ScanChoice("reference", f"recomputes the last {steps} steps", f"torch {torch.__version__}")

    def state_bytes(self) -> int:
        """Memory of the streams' state, bytes; 0 before the first step."""
        with self._lock:
            return 0 if self._streams is None else self._streams.state_bytes()

    def __copy__(self) -> Policy:
        """The same weights, and streams that go on by themselves."""
        other = object.__new__(type(self))
        with self._lock:
            other.__dict__.update(self.__dict__)
            other._lock = threading.Lock()
            if self._generator is not None:
                other._generator = torch.Generator(self._device)
                other._generator.set_state(self._generator.get_state())
            other._streams = None if self._streams is None else self._streams.copy(other._generator)
            other._spare = None  # it is this policy's
        return other

    def _target(self, target: float | None) -> float | None:
        """The return to ask for: as told, else the best of the data; `None` where the model reads none."""
        config = self.model.config
        if not config.takes_target:
            if target is not None:
                why = "the model predicts it" if "R" in config.layout else f"the layout {config.layout!r} has no R"
                raise DataError(f"target_return: expected none ({why}), got {target}")
            return None
        if target is None:
            return float(self.model.stats.return_max)
        if not math.isfinite(target):
            raise DataError(f"target_return: expected a finite number, got {target}")
        return float(target)

    def _begun(self, count: int) -> Streams:
        if isinstance(self.model, PretrainedModel):
            return QueryStreams(self.model, count, self._generator)
        if self.rescan is not None:
            return RescannedStreams(self.model, count, self._generator, self.rescan, self.rescan_order)
        return begin(self.model, count, self.context, self._generator, self._impl, self._spare)

    def _check(self, seen: np.ndarray, rewards: Any, first: Any, target: Any) -> Step:
        """The step that the arguments describe. Nothing has been touched when something is wrong with them."""
        shape, count = self.spec.observation_shape, len(seen)
        if seen.shape[1:] != shape or seen.ndim != len(shape) + 1:
            raise DataError(f"act: observations: expected {shape} or (B, {str(shape)[1:]}, got {seen.shape}")
        if self._streams is not None and count != self._streams.count:
            expected = f"expected {self._streams.count} streams"
            raise DataError(f"act: observations: {expected}, got {count} (call reset first)")
        starts = _column("first", first, np.bool_, count)
        earned = _column("rewards", rewards, np.float32, count)
        wanted: Any = self.target_return or 0.0
        if target is not None:
            self._target(0.0)  # refused where the model reads none
            wanted = _column("target_return", target, np.float64, count)
            told = starts if self._last is not None else np.True_  # elsewhere the target is not looked at
            _require_finite("target_return", np.where(told, wanted, 0.0))
        last = self._last
        if last is None:
            starts, last = np.ones(count, np.bool_), _Last.empty(count, self.spec)
        return_to_go, timestep = last.return_to_go - earned, last.timestep + 1
        fresh = starts if self.forget == "episode" else np.full(count, self._last is None)
        if np.count_nonzero(starts):
            earned = np.where(fresh, np.float32(0.0), earned)
            return_to_go, timestep = np.where(starts, wanted, return_to_go), np.where(starts, 0, timestep)
        return Step(*last, earned, fresh, self._stacked(seen, starts), timestep, return_to_go)

    def _stacked(self, seen: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Images `(B, k, *O)`, the present ones last; before an episode's start they are black."""
        if self.spec.frame_stack == 1:
            return seen
        stacked = np.zeros((len(seen), self.spec.frame_stack, *seen.shape[1:]), np.uint8)
        stacked[:, -1] = seen
        if self._last is not None:
            stacked[~starts, :-1] = self._images[~starts, 1:]
        return stacked


class _Last(NamedTuple):
    """What remains of the last step, in the order of `Step`."""

    action: np.ndarray  # (B, *A) float32 or (B,) int64
    timestep: np.ndarray  # (B,) int64
    # In float64: a float32 counter of thousands no longer notices rewards of thousandths.
    return_to_go: np.ndarray  # (B,) float64

    @classmethod
    def empty(cls, count: int, spec: Spec) -> _Last:
        return cls(np.zeros((count, *spec.action_shape), spec.action_dtype), np.zeros(count, np.int64), np.zeros(count))


def _check_rescan(model: Model, episodes: int, order: HistoryOrder, context: Context, forget: Forget) -> None:
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise DataError(f"rescan: expected a number of episodes, at least 1, or none, got {episodes!r}")
    if order not in get_args(HistoryOrder):
        raise DataError(f"rescan_order: expected one of {', '.join(get_args(HistoryOrder))}, got {order!r}")
    if forget != "task" or context != "recurrent":
        told = f"forget={forget!r}" if forget != "task" else f"context={context!r}"
        raise DataError(f"rescan: expected forget='task' and context='recurrent' with it, got {told}")
    if model.config.query or model.config.returns == "predicted" or model.spec.is_image:
        kinds = {"a query": model.config.query, "pictures": model.spec.is_image}
        kind = next((kind for kind, found in kinds.items() if found), "predicted returns")
        raise DataError(f"rescan: expected none for a model with {kind}, got {episodes}")


def _array(name: str, values: Any, kind: type[np.generic]) -> np.ndarray:
    try:
        return np.asarray(values, dtype=kind, order="C")
    except (TypeError, ValueError):
        raise DataError(f"act: {name}: expected an array of numbers, got {type(values).__name__}") from None


def _pixels(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype != np.uint8:  # a picture of 0 to 1 would become black without a word
        raise DataError(f"act: observations: expected images of uint8, 0 to 255, got {array.dtype}")
    return np.ascontiguousarray(array)


def _column(name: str, values: Any, kind: type[np.generic], count: int) -> np.ndarray:
    """One value per stream, from that many or from a single one."""
    if count == 1 and isinstance(values, float | int):
        return np.array([values], kind)  # what a loop round one environment gives, a microsecond sooner
    column = _array(name, values, kind)
    if column.shape == (count,):
        return column
    if column.shape not in ((), (1,)):
        raise DataError(f"act: {name}: expected a number or {count} of them, got shape {column.shape}")
    return np.full(count, column, kind)


def _require_finite(name: str, values: np.ndarray) -> None:
    """Raises for the first stream with a value that is not finite."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"act: stream {row}: {name}: expected finite values, got {values[row].reshape(-1)}")
