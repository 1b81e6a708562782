"""`rollout`: an actor plays whole episodes in an environment and the episodes come back as trajectories.

Symbols: `B` rows (environments side by side), `T` environment steps, `O`/`A` observation/action shape.

We step a plain list of environments and not `gymnasium.vector`: its autoreset either inserts a step that belongs to no
episode (`NEXT_STEP`) or hides the last observation in `info` (`SAME_STEP`), and both hand out seeds per row, so that
the episodes played would depend on the number of rows. Here episode `i` is the same whatever the number of rows, up to
the rounding of the actor: a network's matrix products differ by about 1e-6 between batch sizes, and a chaotic simulator
makes that grow. Runs with equal `num_envs` are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from scanrl.envs.ids import id_of
from scanrl.envs.make import EnvSource, environment_spec, make_environment, one_line
from scanrl.spaces import as_space
from scanrl.structure import action_row, flat_observations, structured_actions
from scanrl.types import DataError, Spec, Trajectory

__all__ = [
    "Actor",
    "EnvSource",
    "RandomActor",
    "RolloutError",
    "environment_spec",
    "make_environment",
    "rollout",
]

DEFAULT_ROWS = 16  # enough to fill a small network's batch, few enough that making the environments costs nothing


class Actor(Protocol):
    """What `rollout` needs: `scanrl.policy.Policy` and `RandomActor` are actors."""

    def reset(self, count: int) -> None:
        """Forget everything; the next `act` has `count` rows, all of them fresh."""
        ...

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> Any:
        """One action per row.

        Args:
            observations: `(B, *O)` float32, raw units.
            rewards: `(B,)` float32, what the previous action of the row earned; 0 where `first`.
            first: `(B,)` bool, true where the row starts an episode and must forget the one before.

        Returns:
            `(B, A)` floating point in environment units, or `(B,)` integers in `[0, action_size)` if discrete. For an
            action of several parts, what the environment's space has, with `(B, ...)` in every part.
        """
        ...


class RolloutError(DataError):
    """An environment (or the actor) broke its contract: `Hopper-v5: episode 3: step 17: reward: expected ..., got ...`.

    Attributes:
        env_id: the environment.
        episode: index of the episode that failed.
        step: number of steps it had completed.
        finished: the episodes that were complete by then, in episode order.
    """

    def __init__(self, env_id: str, episode: int, step: int, problem: str) -> None:
        super().__init__(f"{env_id}: episode {episode}: step {step}: {problem}")
        self.env_id, self.episode, self.step = env_id, episode, step
        self.finished: list[Trajectory] = []


def rollout(
    actor: Actor,
    env: EnvSource,
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int | None = None,
    max_steps: int | None = None,
    progress: Callable[[int], None] | None = None,
    like: Spec | None = None,
) -> list[Trajectory]:
    """Plays exactly `episodes` episodes and returns them in order.

    Episode `i` is reset with a seed made from `(seed, i)` and rows take the next episode as they fall free. Every
    episode that is started is finished and counted, so short ones are not favoured.

    Args:
        actor: chooses the actions; it is reset first.
        env: Gymnasium id, or a function that makes one environment.
        episodes: how many to play, at least 1.
        seed: not negative.
        num_envs: environments stepped side by side in this process (default 16, never more than `episodes`).
        max_steps: cut episodes after this many steps (marked as truncated), besides the environment's own limit.
        progress: called after every step, with the number of episodes finished so far; what it raises ends the rollout.
        like: what the actor was trained on: where that names entries of a dictionary observation, it is shown these.

    Returns:
        Trajectories in raw units that hold the actions as applied (clipped to the action space).

    Raises:
        DataError: the environment is unknown, cannot be made or has spaces we cannot use.
        RolloutError: it fails while running; `.finished` keeps what was complete.
    """
    _check_counts(episodes=episodes, num_envs=num_envs, max_steps=max_steps)
    if seed < 0:
        raise DataError(f"rollout: seed: expected 0 or more, got {seed}")
    environments: list[gym.Env] = []
    try:
        for _ in range(min(episodes, num_envs or DEFAULT_ROWS)):
            environments.append(make_environment(env))
        if len({id(e) for e in environments}) < len(environments):
            raise DataError("rollout: env: expected a new environment from each call, got the same one twice")
        return _play(actor, [_Row(e, max_steps, like) for e in environments], episodes, seed, progress)
    finally:
        for environment in environments:
            environment.close()


def _play(
    actor: Actor, rows: Sequence[_Row], episodes: int, seed: int, progress: Callable[[int], None] | None
) -> list[Trajectory]:
    finished: dict[int, Trajectory] = {}
    waiting = iter(range(episodes))
    try:
        for row in rows:
            row.start(next(waiting), seed)
        actor.reset(len(rows))
        while len(finished) < episodes:
            observations = np.stack([row.observation for row in rows])  # (B, *O)
            rewards = np.array([row.reward for row in rows], np.float32)
            actions = actor.act(observations, rewards, np.array([row.first for row in rows]))
            actions = _checked(actions, rows)
            for row, action in zip(rows, actions, strict=True):
                if row.episode is None or not row.step(action):
                    continue
                finished[row.episode] = row.trajectory()
                row.start(next(waiting, None), seed)
            if progress is not None:
                progress(len(finished))
    except RolloutError as error:
        error.finished = [finished[i] for i in sorted(finished)]
        raise
    return [finished[i] for i in range(episodes)]


class _Row:
    """One environment and the episode it is playing.

    A row with nothing left to do (`episode` is None) shows its last observation and is flagged `first` for ever: the
    actor keeps its shape, starts over each time instead of running past its longest episode, and we drop the answer.
    """

    def __init__(self, env: gym.Env, max_steps: int | None, like: Spec | None) -> None:
        self.env, self.max_steps = env, max_steps
        self.name = id_of(env)
        self.spec = environment_spec(env, like=like)
        self.episode: int | None = None

    def start(self, episode: int | None, seed: int) -> None:
        """Begins `episode`, or idles if there is none left."""
        self.episode, self.first, self.reward = episode, True, 0.0
        if episode is None:
            return
        self.steps: list[tuple[np.ndarray, Any, float, bool, bool]] = []
        self.observation = self._observe(self._call(lambda: self.env.reset(seed=episode_seed(seed, episode)), 2)[0])

    def step(self, action: np.ndarray) -> bool:
        """Applies `action`; true if that ended the episode."""
        applied, recorded = self._applied(action)
        observation, reward, terminated, truncated, _ = self._call(lambda: self.env.step(applied), 5)
        if np.ndim(reward) != 0 or not np.isfinite(reward):
            found = f"shape {np.shape(reward)}" if np.ndim(reward) else f"{reward}"
            raise self._fault(f"reward: expected a finite number, got {found}")
        ended, cut = bool(terminated), bool(truncated) or len(self.steps) + 1 == self.max_steps
        following = self._observe(observation)
        self.steps.append((self.observation, recorded, float(reward), ended, cut))
        self.observation, self.first, self.reward = following, False, float(reward)
        return ended or cut

    def trajectory(self) -> Trajectory:
        """The episode so far."""
        observations, actions, rewards, terminations, truncations = zip(*self.steps, strict=True)
        return Trajectory(
            observations=np.stack(observations),
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            terminations=np.array(terminations, bool),
            truncations=np.array(truncations, bool),
        )

    def _applied(self, action: np.ndarray) -> tuple[Any, np.ndarray]:
        """What the environment gets and what the trajectory records."""
        if not np.isfinite(action).all():
            raise self._fault(f"action: expected finite values, got {action}")
        space = self.env.action_space
        if self.spec.action_parts:
            taken = structured_actions(self.spec, action)
            applied = as_space(space, taken)
            if not space.contains(applied):
                raise self._fault(f"action: expected one of {space}, got {taken}")
            return applied, action_row(self.spec, taken).astype(self.spec.action_dtype)
        if isinstance(space, spaces.Discrete):
            if not 0 <= action < space.n:
                raise self._fault(f"action: expected 0 to {space.n - 1}, got {action}")
            # Recorded actions count from 0, which is what a head predicts; the space may start elsewhere.
            return int(action) + int(space.start), np.asarray(action, np.int64)
        assert isinstance(space, spaces.Box)
        # A policy already stays inside the bounds; rounding must not take it out of them, nor another actor's habit.
        applied = np.clip(action, space.low, space.high).astype(space.dtype)
        return applied, applied.astype(np.float32)  # a copy: some environments write to what they are given

    def _observe(self, observation: Any) -> np.ndarray:
        if self.spec.observation_parts:
            try:
                observation = flat_observations(self.spec, self._kept(observation))
            except DataError as error:
                raise self._fault(str(error)) from None
        with np.errstate(over="ignore"):  # what does not fit in float32 is caught as not finite below
            found = np.array(observation, self.spec.observation_dtype)  # a copy: environments may reuse their buffer
        if found.shape != self.spec.observation_shape:
            raise self._fault(f"observation: expected shape {self.spec.observation_shape}, got {found.shape}")
        if not np.isfinite(found).all():
            at = np.argwhere(~np.isfinite(found))[0]
            raise self._fault(f"observation: expected finite values, got {found[tuple(at)]} at {at.tolist()}")
        return found

    def _kept(self, observation: Any) -> Any:
        """The entries of a dictionary that the actor was trained on."""
        names = [part.name for part in self.spec.observation_parts]
        if not isinstance(observation, Mapping) or not names[0]:
            return observation
        return {name: observation[name] for name in names if name in observation}

    def _call(self, call: Callable[[], Any], size: int) -> tuple[Any, ...]:
        try:
            result = call()
        except Exception as error:  # whatever the environment throws, the message must say where it happened
            raise self._fault(one_line(error)) from error
        if not isinstance(result, tuple) or len(result) != size:
            found = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise self._fault(f"expected {size} values from {'reset' if size == 2 else 'step'}, got {found}")
        return result

    def _fault(self, problem: str) -> RolloutError:
        assert self.episode is not None
        return RolloutError(self.name, self.episode, len(self.steps), problem)


def episode_seed(seed: int, episode: int) -> int:
    """The seed that resets episode number `episode`: depends on these two numbers and nothing else."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0])


class RandomActor:
    """Uniform over the action space. Each episode has its own generator, so `num_envs` changes nothing.

    Args:
        spec: the action space; continuous ones need bounds.
        seed: not negative.

    Raises:
        DataError: the action space has no bounds.
    """

    context = 0  # looks at no step at all; these two let `evaluate` score it beside a policy
    target_return = None

    def __init__(self, spec: Spec, seed: int = 0) -> None:
        unbounded = spec.action_kind == "continuous" and (spec.action_low is None or spec.action_high is None)
        if unbounded or any(not part.choices and part.low is None for part in spec.action_parts):
            raise DataError("RandomActor: action_low, action_high: expected bounds, got none")
        self.spec, self.seed = spec, seed
        self.reset(0)

    def with_target(self, target: float) -> RandomActor:
        """Itself: it aims at nothing."""
        return self

    def reset(self, count: int) -> None:
        """`count` fresh rows; the next episode is number 0 again."""
        self._generators: list[Any] = [None] * count
        self._episodes = 0

    def act(self, observations: np.ndarray, rewards: np.ndarray, first: np.ndarray) -> Any:
        """`(B, A)` float32, or `(B,)` int64 if discrete; as the space has it if the action has several parts."""
        for row in np.flatnonzero(first):  # `rollout` hands out episodes in row order, so counting gives their number
            self._generators[row] = np.random.default_rng([self.seed, self._episodes, 1])
            self._episodes += 1
        if self.spec.action_parts:
            rows = [self._row(generator) for generator in self._generators]
            return structured_actions(self.spec, np.array(rows, self.spec.action_dtype))
        if self.spec.action_kind == "discrete":
            return np.array([g.integers(self.spec.action_size) for g in self._generators], np.int64)
        low, high = self.spec.action_low, self.spec.action_high
        return np.array([g.uniform(low, high) for g in self._generators], np.float32)

    def _row(self, generator: Any) -> np.ndarray:
        """A recorded row of an action of several parts."""
        parts = [
            generator.integers(part.choices) if part.choices else generator.uniform(part.low, part.high)
            for part in self.spec.action_parts
        ]
        return np.concatenate(parts)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise DataError(f"rollout: {name}: expected 1 or more, got {count}")


def _checked(actions: Any, rows: Sequence[_Row]) -> np.ndarray:
    """The actor's answer as rows to be recorded `(B, *A)`."""
    spec = rows[0].spec
    if spec.action_parts:
        try:
            actions = action_row(spec, actions)
        except DataError as error:
            raise DataError(f"{rows[0].name}: {error}") from None
    whole = spec.action_dtype is np.int64
    kind, expected = ("i", "u") if whole else ("f",), (len(rows), *spec.action_shape)
    if np.shape(actions) != expected or actions.dtype.kind not in kind:
        wanted = "integers" if whole else "floating point"
        found = f"{np.shape(actions)} {getattr(actions, 'dtype', type(actions).__name__)}"
        raise DataError(f"{rows[0].name}: actions: expected {expected} {wanted}, got {found}")
    return actions
