"""Several episodes of a task: acting equals the training forward across them, and what is played and scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl import streams
from scanrl.batch import Batch
from scanrl.data.dataset import Dataset
from scanrl.envs.darkroom import Darkroom
from scanrl.envs.task_env import make_family
from scanrl.in_context import held_out_tasks, play_tasks, score_tasks
from scanrl.kernels import ScanChoice, native
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.policy import Policy
from scanrl.types import DataError
from tests.conftest import BOX, make_stats

LENGTHS = [4, 1, 6, 3]
CASES = [(name, "sar", merged) for name in ("dt", "dm", "dmm-dc") for merged in (False, True)]
CASES += [("dm", "Rsa", False), ("dm", "sa", False), ("dm", "sa", True)]
CASES += [("ad", "sar", True), ("ad", "sar", False), ("ad-mamba", "sar", True)]


@pytest.fixture(params=["native", "torch"])
def stepping(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(streams, "scan_choice", lambda _: ScanChoice("reference", "the test says so", ""))
    elif native.extension()[0] is None:
        pytest.skip("the C extension is not available")
    return request.param


def model_of(name, layout, **changes):
    """Weights large enough that every token matters to the action."""
    config = replace(recipe(name).model, layout=layout, width=16, context=20, max_length=8, state_size=4, **changes)
    model = DecisionModel(config, BOX, make_stats(BOX), seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return model.eval()


def play(policy, rows=2):
    """Episodes of `LENGTHS`, one after the other, as the context they would be in training."""
    rng, steps = np.random.default_rng(0), sum(LENGTHS)
    seen, earned = rng.normal(size=(steps, rows, 5)).astype(np.float32), rng.normal(size=(steps, rows))
    earned, times = earned.astype(np.float32), np.concatenate([np.arange(n) for n in LENGTHS])
    policy.reset()
    actions = [policy.act(seen[t], earned[t - 1] if t else 0.0, times[t] == 0) for t in range(steps)]
    to_go = np.zeros((steps, rows))
    for t in range(steps):
        to_go[t] = 25.0 if times[t] == 0 else to_go[t - 1] - earned[t - 1]
    return Batch(
        observations=torch.from_numpy(seen).transpose(0, 1),
        actions=torch.from_numpy(np.stack(actions, 1)),
        rewards=torch.from_numpy(earned).T,
        returns_to_go=torch.from_numpy(to_go.astype(np.float32)).T,
        timesteps=torch.from_numpy(times).expand(rows, steps),
        mask=torch.ones(rows, steps, dtype=torch.bool),
    )


@pytest.mark.parametrize("context", ["recurrent", 20])
@pytest.mark.parametrize("name, layout, merged", CASES)
def test_acting_across_episodes_equals_the_training_forward(stepping, name, layout, merged, context):
    model = model_of(name, layout, merged=merged)
    policy = Policy(model, context=context, forget="task")
    assert policy.step_choice().impl == ("native" if (stepping, context) == ("native", "recurrent") else "reference")
    batch = play(policy)
    with torch.inference_mode():
        expected = policy.model.actions(batch)
    torch.testing.assert_close(batch.actions, expected, rtol=1e-5, atol=1e-5)
    forgetful = play(Policy(model, context=context)).actions
    torch.testing.assert_close(forgetful[:, : LENGTHS[0]], expected[:, : LENGTHS[0]], rtol=1e-5, atol=1e-5)
    assert ((forgetful - expected)[:, LENGTHS[0] :].abs() > 1e-3).any()


def test_what_ends_the_memory_has_a_name():
    with pytest.raises(DataError, match=r"^forget: expected one of episode, task, got 'never'$"):
        Policy(model_of("dm", "sar"), forget="never")


class Witness:
    """Notes what it is shown and goes straight to the goal, whose task it is told by the row."""

    def __init__(self, room, tasks):
        self.room, self.tasks, self.shown = room, np.asarray(tasks), []

    def reset(self, count):
        self.shown.append("reset")

    def act(self, observations, rewards, first):
        self.shown.append((observations.copy(), rewards.copy(), first.copy()))
        cells = (observations[:, 0] * self.room.size + observations[:, 1]).astype(np.int64)
        return self.room.best(self.tasks, cells)


def test_the_last_reward_of_an_episode_arrives_with_the_first_observation_of_the_next():
    room, tasks = Darkroom(), [40, 3, 77]
    witness = Witness(room, tasks)
    played = play_tasks(witness, "Darkroom-v0", tasks, episodes=3, seed=0)
    assert [len(own) for own in played] == [3, 3, 3]
    assert all(len(episode) == 20 for own in played for episode in own)
    assert witness.shown[0] == "reset"
    assert "reset" not in witness.shown[1:]
    shown = witness.shown[1:]
    for row, own in enumerate(played):
        rewards = np.concatenate([episode.rewards for episode in own])
        assert np.array_equal([0, *rewards[:-1]], [x[1][row] for x in shown])
        assert np.flatnonzero([x[2][row] for x in shown]).tolist() == [0, 20, 40]


def test_tasks_whose_episodes_end_early_wait_for_the_others():
    goals = [40, 0]  # the centre, where the agent starts, and a corner
    witness = Witness(Darkroom(), goals)
    options = {"ends": True, "size": 9}
    played = play_tasks(witness, "DarkroomHard-v0", goals, episodes=2, options=options)
    assert [[len(episode) for episode in own] for own in played] == [[1, 1], [8, 8]]
    assert all(episode.terminations[-1] for own in played for episode in own)


def test_the_optimal_policy_scores_one_and_the_curve_is_the_mean_over_tasks():
    tasks = held_out_tasks("Darkroom-v0", 5)
    scores, played = score_tasks(Witness(Darkroom(), tasks), "Darkroom-v0", tasks, episodes=2)
    assert scores.returns.shape == (5, 2)
    assert scores.share(0) == scores.share(1) == 1.0
    assert np.array_equal(scores.curve, scores.returns.mean(axis=0))
    assert scores.random == pytest.approx(20 / 81, rel=0.1)
    low, high = scores.interval(0)
    assert low < scores.curve[0] < high
    assert scores.to_json()["tasks"] == tasks.tolist()
    every = [episode for own in played for episode in own]
    assert Dataset.from_trajectories(every).returns.tolist() == scores.returns.ravel().tolist()


def test_held_out_tasks_are_those_that_histories_leave_out():
    _, held_out = make_family("scanrl.envs.darkroom:Darkroom", {"size": 5}).split()
    assert np.array_equal(held_out_tasks("Darkroom-v0", 5, {"size": 5}), held_out)
    with pytest.raises(DataError, match=r"^Darkroom-v0: tasks: expected 1 to 16 held-out ones, got 17$"):
        held_out_tasks("Darkroom-v0", 17)
    with pytest.raises(DataError, match=r"^CartPole-v1: tasks: expected their numbers"):
        held_out_tasks("CartPole-v1", 3)
    with pytest.raises(DataError, match=r"^CartPole-v1: cannot be made with \{'task': 0\}: TypeError"):
        play_tasks(Witness(Darkroom(), [0]), "CartPole-v1", [0], episodes=1)
    with pytest.raises(DataError, match=r"^play_tasks: expected at least one task and one episode, got 0 and 1$"):
        play_tasks(Witness(Darkroom(), []), "Darkroom-v0", [], episodes=1)
