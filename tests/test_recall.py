"""Acting on finished episodes: states made anew from the last ones, and examples behind a query."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from scanrl.batch import Batch
from scanrl.models.build import build_model
from scanrl.models.recipes import recipe
from scanrl.policy import Policy
from scanrl.types import DataError
from tests.conftest import BOX, make_stats

# Episodes of every stream: they begin and end at different times.
LENGTHS = [[4, 1, 6, 3, 5], [7, 2, 2, 6, 2], [3, 3, 4, 4, 5]]
STEPS = 19
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ad-mamba", {}),
    ("ad-mamba", {"merged": False}),
    ("ad", {"context": 40}),
    ("ad", {"context": 4}),
    ("ad", {"merged": False, "context": 40}),
    ("dm", {"time_embedding": True}),
    ("dmh", {"heads": 1}),
    ("dmh", {"heads": 1, "merged": False, "subgoal_prefix": True}),
]
every_case = pytest.mark.parametrize(("name", "changes"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])


class Played(NamedTuple):
    actions: np.ndarray  # (T, B, A)
    seen: np.ndarray  # (T, B, O)
    earned: np.ndarray  # (T, B)
    times: np.ndarray  # (T, B)


def model_of(name: str, **changes: Any) -> Any:
    """Weights large enough that every token matters to the action; in float64."""
    sizes = {"width": 16, "context": 20, "max_length": 8, "state_size": 4, **changes}
    model = build_model(recipe(name, **sizes).model, BOX, make_stats(BOX), seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return model.double().eval()


def play(policy: Policy, rows: list[int] | None = None, steps: int = STEPS, begin: int = 0) -> Played:
    """The episodes of `LENGTHS`; what is seen and earned does not depend on the actions."""
    rows = list(range(len(LENGTHS))) if rows is None else rows
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(STEPS, 3, 5)).astype(np.float32)[:, rows]
    earned = rng.normal(size=(STEPS, 3)).astype(np.float32)[:, rows]
    times = np.stack([np.concatenate([np.arange(n) for n in LENGTHS[row]])[:STEPS] for row in rows], 1)
    if begin == 0:
        policy.reset()
    actions = [
        policy.act(seen[t], earned[t - 1] if t else np.zeros(len(rows)), times[t] == 0) for t in range(begin, steps)
    ]
    return Played(np.stack(actions), seen, earned, times)


def episodes_of(played: Played, row: int) -> list[slice]:
    starts = [*np.flatnonzero(played.times[:, row] == 0).tolist(), STEPS]
    return [slice(a, b) for a, b in pairwise(starts)]


def batch_of(played: Played, row: int, episodes: list[slice]) -> Batch:
    """Episodes one after the other as a context of the training."""
    at = np.concatenate([np.arange(STEPS)[episode] for episode in episodes])
    columns = (played.seen[at, row], played.actions[at, row], played.earned[at, row], np.zeros(len(at)))
    seen, actions, earned, to_go = (torch.from_numpy(np.asarray(column, np.float64))[None] for column in columns)
    times = torch.from_numpy(played.times[at, row])[None]
    return Batch(seen, actions, earned, to_go, times, torch.ones(1, len(at), dtype=torch.bool))


def ordered(played: Played, row: int, episodes: list[slice], order: str) -> list[slice]:
    return episodes if order == "learning" else sorted(episodes, key=lambda e: played.earned[e, row].sum())


@every_case
def test_with_all_episodes_in_their_order_it_is_the_state_that_goes_on(name: str, changes: dict) -> None:
    model = model_of(name, layout="sar", **changes)
    endless = play(Policy(model, forget="task", impl="reference"))
    for most in (4, 9):
        anew = play(Policy(model, forget="task", rescan=most))
        np.testing.assert_allclose(anew.actions, endless.actions, rtol=0, atol=1e-6)  # actions are given in float32
    assert np.abs(play(Policy(model, forget="task", rescan=1)).actions - endless.actions).max() > 1e-4


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("order", ["learning", "return"])
@every_case
def test_an_episode_is_what_training_would_make_of_the_last_ones_and_it(
    name: str, changes: dict, order: str, most: int
) -> None:
    model = model_of(name, layout="sar", **changes)
    played = play(Policy(model, forget="task", rescan=most, rescan_order=order))  # type: ignore[arg-type]
    for row in range(3):
        own = episodes_of(played, row)
        for number, present in enumerate(own):
            before = ordered(played, row, own[max(0, number - most) : number], order)
            with torch.inference_mode():
                expected = model.actions(batch_of(played, row, [*before, present]))[0]
            count = present.stop - present.start
            np.testing.assert_allclose(played.actions[present, row], expected[-count:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ad-mamba", "ad", "dmh"])
def test_the_state_that_an_episode_begins_with_is_exact(name: str) -> None:
    """Actions are given in float32; what is carried is compared in float64."""
    model = model_of(name, heads=1)
    endless, anew = (Policy(model, forget="task", rescan=most, impl="reference") for most in (None, 9))
    for policy in (endless, anew):
        play(policy)

    def leaves(tree):
        return [y for x in tree for y in (leaves(x) if isinstance(x, tuple) else [x])]

    states = (leaves(policy._streams._state) for policy in (endless, anew))  # type: ignore[union-attr]
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, memory", [("ad-mamba", {"rescan": 2, "rescan_order": "return"}), ("dpt", {})])
def test_streams_go_their_own_way(name: str, memory: dict) -> None:
    """A stream acts as it would alone, and a copy goes on as the policy itself."""
    model = model_of(name)
    policy = Policy(model, forget="task", **memory)
    together = play(policy)
    for row in range(3):
        alone = play(Policy(model, forget="task", **memory), rows=[row])
        np.testing.assert_allclose(alone.actions[:, 0], together.actions[:, row], rtol=0, atol=1e-6)
    play(policy, steps=8)
    other = copy.copy(policy)
    np.testing.assert_array_equal(play(other, begin=8).actions, together.actions[8:])
    np.testing.assert_array_equal(play(policy, begin=8).actions, together.actions[8:])
    assert policy.state_bytes() > 0
    np.testing.assert_array_equal(play(policy).actions, together.actions)  # reset forgets everything


@pytest.mark.parametrize("name, memory", [("ad-mamba", {"rescan": 2}), ("dpt", {})])
def test_what_cannot_be_acted_on_changes_nothing(name: str, memory: dict) -> None:
    policy = Policy(model_of(name), forget="task", **memory)
    together = play(policy)
    for at in (4, 7, 8):
        play(policy, steps=at)
        with pytest.raises(DataError, match=r"^act: stream 1: observations: expected finite values"):
            policy.act(np.where(np.arange(3)[:, None] == 1, np.nan, np.zeros((3, 5))), 0.0, True)
        np.testing.assert_array_equal(play(policy, begin=at).actions, together.actions[at:])


@pytest.mark.parametrize("context", [40, 5, 1])
def test_a_query_is_answered_from_the_last_transitions_of_finished_episodes(context: int) -> None:
    model = model_of("dpt", context=context)
    played = play(Policy(model, forget="task"))
    for row in range(3):
        own = episodes_of(played, row)
        for number, present in enumerate(own):
            for t in range(present.start, present.stop):
                # Transitions of the episodes before, and of this one none.
                if number:
                    batch = batch_of(played, row, own[:number])
                    times = batch.timesteps[0]
                    followed = torch.cat([times[1:] > 0, torch.tensor([False])])
                    following = torch.cat([batch.observations[:, 1:], batch.observations[:, :1]], 1)
                    batch = batch._replace(next_observations=following * followed[:, None], followed=followed[None])
                    batch = batch._replace(**{k: v[:, -context:] for k, v in batch._asdict().items() if v.numel()})
                else:
                    batch = batch_of(played, row, own[:1])
                    batch = batch._replace(next_observations=batch.observations, followed=batch.mask)
                batch = batch._replace(queries=torch.from_numpy(played.seen[t, row]).double()[None])
                with torch.inference_mode():
                    expected = model.actions(batch)[0, -1 if number else 0]
                np.testing.assert_allclose(played.actions[t, row], expected, rtol=0, atol=1e-6)


def test_a_query_knows_nothing_where_every_episode_is_forgotten() -> None:
    model = model_of("dpt")
    played = play(Policy(model))
    for t in (0, 5, 18):
        fresh = Policy(model).act(played.seen[t])
        np.testing.assert_allclose(played.actions[t], fresh, rtol=0, atol=1e-6)


def test_ways_of_remembering_that_are_not_for_a_model_are_refused() -> None:
    model, query = model_of("ad-mamba"), model_of("dpt")
    for values, message in [
        ({"rescan": 0}, "rescan: expected a number of episodes, at least 1, or none, got 0"),
        ({"rescan": 2, "rescan_order": "best"}, "rescan_order: expected one of learning, return, got 'best'"),
        (
            {"rescan": 2, "forget": "episode"},
            "rescan: expected forget='task' and context='recurrent' with it, got forg",
        ),
        ({"rescan": 2, "context": 9}, "rescan: expected forget='task' and context='recurrent' with it, got context=9"),
        ({"rescan": 2, "impl": "native"}, "impl: expected reference for rescan, got 'native'"),
    ]:
        with pytest.raises(DataError) as error:
            Policy(model, **{"forget": "task", **values})
        assert str(error.value).startswith(message)
    with pytest.raises(DataError, match=r"^rescan: expected none for a model with a query, got 2$"):
        Policy(query, forget="task", rescan=2)
    with pytest.raises(DataError, match=r"^context: expected 'recurrent' for a model with a query, got 9$"):
        Policy(query, context=9)
    predicting = model_of("edt", heads=1)
    with pytest.raises(DataError, match=r"^rescan: expected none for a model with predicted returns, got 2$"):
        Policy(predicting, forget="task", rescan=2)
    assert Policy(query.float()).step_choice().reason == "a model with a query has no native step"
