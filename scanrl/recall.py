"""Streams whose memory is a number of finished episodes and not only a state: scanned anew, or read as examples.

Symbols: `B` streams, `T` steps, `n` episodes, `O`/`A` observation/action shape. `scanrl.streams` has those that carry a
state from step to step and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.data.histories import HistoryOrder
from scanrl.models.build import Model
from scanrl.models.decision import DecisionModel
from scanrl.models.pretrained import PretrainedModel
from scanrl.nn import State, map_state
from scanrl.streams import Step, Streams, _bytes, _carry, _finite, _tensors

__all__ = ["QueryStreams", "RescannedStreams"]


class _Episode(NamedTuple):
    """A finished episode of one stream, in the order and the words of `Batch`."""

    observations: np.ndarray  # (T, *O)
    actions: np.ndarray  # (T, *A)
    rewards: np.ndarray  # (T,)
    returns_to_go: np.ndarray  # (T,)
    timesteps: np.ndarray  # (T,)


class _Lived:
    """What every stream has lived through: its last finished episodes, and the one it is in.

    Args:
        count: number of streams.
        episodes: most finished episodes that a stream keeps, where these are limited.
        steps: steps beyond which a stream keeps no older episodes, where these are.
    """

    def __init__(self, count: int, *, episodes: int | None = None, steps: int | None = None) -> None:
        self._episodes, self._steps = episodes, steps
        self.finished: list[tuple[_Episode, ...]] = [()] * count
        self._seen: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
        self._done: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]

    def after(self, x: Step) -> dict[int, tuple[_Episode, ...]]:
        """Of the streams in which this step begins an episode, the finished ones that they keep; nothing changes."""
        found: dict[int, tuple[_Episode, ...]] = dict.fromkeys(np.flatnonzero(x.first).tolist(), ())
        for row in np.flatnonzero((x.timestep == 0) & ~x.first).tolist():
            found[row] = self._kept((*self.finished[row], self._ended(row, x)))
        return found

    def note(self, x: Step, begun: Mapping[int, tuple[_Episode, ...]]) -> None:
        """The step has been acted on; `begun` is what `after` said of it."""
        for row, (seen, done) in enumerate(zip(self._seen, self._done, strict=True)):
            if row in begun:
                self.finished[row] = begun[row]
                seen.clear()
                done.clear()
            else:
                done.append((x.last_action[row], x.reward[row]))
            seen.append((x.observation[row], x.return_to_go[row], x.timestep[row]))

    def copy(self) -> _Lived:
        other = copy(self)
        other.finished = list(self.finished)
        other._seen, other._done = [list(x) for x in self._seen], [list(x) for x in self._done]
        return other

    def state_bytes(self) -> int:
        """Memory of the finished episodes, and of the observations of the present ones."""
        finished = sum(column.nbytes for own in self.finished for episode in own for column in episode)
        return finished + sum(len(seen) * seen[0][0].nbytes for seen in self._seen if seen)

    def _ended(self, row: int, x: Step) -> _Episode:
        observations, returns_to_go, timesteps = zip(*self._seen[row], strict=True)
        actions, rewards = zip(*self._done[row], (x.last_action[row], x.reward[row]), strict=True)
        return _Episode(*map(np.stack, (observations, actions, rewards, returns_to_go, timesteps)))

    def _kept(self, episodes: tuple[_Episode, ...]) -> tuple[_Episode, ...]:
        if self._episodes is not None:
            return episodes[-self._episodes :]
        first, total = len(episodes), 0
        while first and total < (self._steps or 0):
            first -= 1
            total += len(episodes[first].rewards)
        return episodes[first:]


class RescannedStreams(Streams):
    """Streams that begin every episode with a state made anew from the last finished ones.

    A state that has gone on for longer than any context of the training is nothing training has shown; one that is made
    anew from as many episodes as a context has is. An episode costs as much more as it takes to read `n` others.

    Args:
        model: one that carries a state.
        count: number of streams.
        generator: actions are drawn with it, if there is one.
        episodes: how many are read, `n`; as long as there are fewer, all of them.
        order: as lived through, or ascending by return, the latest of equals last.
    """

    def __init__(
        self, model: Model, count: int, generator: torch.Generator | None, episodes: int, order: HistoryOrder
    ) -> None:
        self._model, self._generator, self.count, self._order = model, generator, count, order
        self._lived = _Lived(count, episodes=episodes)
        with torch.inference_mode():
            self._state = self._initial = model.initial_state(count)

    @torch.inference_mode()
    def step(self, x: Step) -> np.ndarray | None:
        if not _finite(x):
            return None
        begun = self._lived.after(x)
        initial = self._scanned({row: episodes for row, episodes in begun.items() if episodes})
        begins = np.zeros(self.count, np.bool_)
        begins[list(begun)] = True
        values = _tensors(x._replace(first=begins), self._model, self._model.norm.weight.device)
        hidden, state = _carry(self._model, initial, self._state, values)
        actions = self._model.decide(hidden, self._generator).cpu().numpy()
        self._state = state
        self._lived.note(x, begun)
        return actions

    def copy(self, generator: torch.Generator | None) -> RescannedStreams:
        other = copy(self)  # tensors are replaced and never written to
        other._generator, other._lived = generator, self._lived.copy()
        return other

    def state_bytes(self) -> int:
        return _bytes(self._state) + self._lived.state_bytes()

    def _scanned(self, episodes: Mapping[int, Sequence[_Episode]]) -> State:
        """The state in which each row begins an episode: after its own `episodes`, or the initial one."""
        state = self._initial
        contexts = {row: _joined(self._sorted(own)) for row, own in episodes.items()}
        lengths = {row: len(context.rewards) for row, context in contexts.items()}
        for length in sorted(set(lengths.values())):  # padding would go into a state
            rows = [row for row in contexts if lengths[row] == length]
            batch = _batch([contexts[row] for row in rows], self._model)
            places = torch.tensor(rows, device=batch.rewards.device)
            after = _state_after(self._model, batch)
            state = map_state(lambda all_, own, at=places: all_.index_copy(0, at, own.to(all_.dtype)), state, after)
        return state

    def _sorted(self, episodes: Sequence[_Episode]) -> list[_Episode]:
        if self._order == "learning":
            return list(episodes)
        return sorted(episodes, key=lambda episode: episode.rewards.sum(dtype=np.float64))


class QueryStreams(Streams):
    """Streams of a model that reads the transitions of finished episodes as examples, and acts on the present state.

    What it reads changes where an episode begins, so that the examples are gathered then. A step reads all of them
    again, since each is read in the light of the state in question.

    Args:
        model: one with a query.
        count: number of streams.
        generator: actions are drawn with it, if there is one.
    """

    def __init__(self, model: PretrainedModel, count: int, generator: torch.Generator | None) -> None:
        self._model, self._generator, self.count = model, generator, count
        self._lived = _Lived(count, steps=model.config.context)
        self._examples = self._gathered(self._lived.finished)

    @torch.inference_mode()
    def step(self, x: Step) -> np.ndarray | None:
        if not _finite(x):
            return None
        begun, examples = self._lived.after(x), self._examples
        if any(episodes or self._lived.finished[row] for row, episodes in begun.items()):
            finished = [begun.get(row, episodes) for row, episodes in enumerate(self._lived.finished)]
            examples = self._gathered(finished)
        weight = self._model.norm.weight
        queries = torch.from_numpy(x.observation).to(weight.device, weight.dtype)
        hidden = self._model(examples._replace(queries=queries))
        at = hidden[torch.arange(self.count, device=weight.device), examples.mask.sum(1)]
        actions = self._model.decide(at, self._generator).cpu().numpy()
        self._examples = examples
        self._lived.note(x, begun)
        return actions

    def copy(self, generator: torch.Generator | None) -> QueryStreams:
        other = copy(self)  # tensors are replaced and never written to
        other._generator, other._lived = generator, self._lived.copy()
        return other

    def state_bytes(self) -> int:
        return _bytes(tuple(self._examples)) + self._lived.state_bytes()

    def _gathered(self, finished: Sequence[Sequence[_Episode]]) -> Batch:
        """The last transitions of every stream, as many as the model takes, padded on the right."""
        spec, most = self._model.spec, self._model.config.context
        nothing = _Episode(
            np.zeros((0, *spec.observation_shape), np.float32),
            np.zeros((0, *spec.action_shape), spec.action_dtype),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
        )
        contexts = [_joined([nothing, *own]) for own in finished]
        batch = _batch([_Episode(*(column[-most:] for column in context)) for context in contexts], self._model)
        # What follows a step is the next one's observation, unless that begins an episode or is padding.
        known = (batch.timesteps.roll(-1, 1) > 0) & batch.mask
        known[:, -1] = False
        following = batch.observations.roll(-1, 1) * known.view(*known.shape, *(1,) * len(spec.observation_shape))
        return batch._replace(next_observations=following, followed=known)


def _joined(episodes: Sequence[_Episode]) -> _Episode:
    """One after the other."""
    return _Episode(*(np.concatenate(columns) for columns in zip(*episodes, strict=True)))


def _batch(contexts: Sequence[_Episode], model: Model) -> Batch:
    """Contexts as a batch on the model's device, its real numbers in the model's precision; padded on the right.

    At least one step long: the shape of nothing would be lost.
    """
    weight, lengths = model.norm.weight, [len(context.rewards) for context in contexts]
    steps = max(1, *lengths)
    columns = []
    for parts in zip(*contexts, strict=True):
        column = np.zeros((len(parts), steps, *parts[0].shape[1:]), parts[0].dtype)
        for row, part in enumerate(parts):
            column[row, : len(part)] = part
        tensor = torch.from_numpy(column)
        columns.append(tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else tensor.dtype))
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    return Batch(*columns, mask=mask.to(weight.device))


def _state_after(model: Model, batch: Batch) -> State:
    """What streams carry that have lived through the rows of a batch without padding, before their next episode."""
    state, steps = model.initial_state(len(batch.rewards)), batch.rewards.shape[1]
    if isinstance(model, DecisionModel):
        # A training window at a time: what attention remembers makes a mask as large as the square of a piece.
        for start in range(0, steps, model.config.context):
            piece = Batch(*(column[:, start : start + model.config.context] for column in batch[:6]))
            state = model(piece, state)[1]
        return state
    columns = {"s": batch.observations, "a": batch.actions, "r": batch.rewards}
    for t in range(steps):
        tokens = [(letter, columns[letter][:, t]) for letter in model.config.layout]
        state = model.feed(tokens, batch.timesteps[:, t], state)[1]
    return state
