"""Contexts of several episodes where nobody has tasks: a replay buffer as one history; and other people's tasks."""

import json

import gymnasium as gym
import numpy as np
import pytest

from scanrl.cli import main
from scanrl.data import Dataset, read_store, write_store
from scanrl.in_context import play_streams
from scanrl.rollout import RandomActor
from scanrl.run import open_run
from scanrl.types import DataError, Spec, Trajectory
from tests.conftest import make_dataset

pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = ["--model.width=8", "--model.state-size=4", "--train.batch-size=2", "--train.context-episodes=3", "--steps=2"]
CARTPOLE = Spec((4,), "discrete", 2)


class Signpost(gym.Env):
    """Somebody else's environment with a `task` option: +1 for the action that is the task."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(3)

    def __init__(self, task=0):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(1, np.float32), float(action == self.task), False, self.left == 0, {}


@pytest.fixture
def signpost():
    gym.register("Signpost-v0", Signpost)
    yield "Signpost-v0"
    del gym.registry["Signpost-v0"]


@pytest.fixture
def replay(capsys):
    write_store(make_dataset(CARTPOLE), "buffer.ds")
    assert main(["collect", "--histories", "--replay", "store:buffer.ds", "--order", "return", "-o", "replay.ds"]) == 0
    assert "replay.ds: 12 episodes of 1 task, " in capsys.readouterr().out
    return "replay.ds"


@pytest.mark.parametrize("recipe", ["dmh", "ad-mamba", "ad"])
def test_a_run_on_a_replay_remembers_its_episodes(recipe, replay, capsys):
    ends = ["--env", "CartPole-v1", "--eval.episodes", "2", "--eval.num-envs", "3"]
    heads = ["--model.heads", "2"] if recipe == "dmh" else []
    assert main(["train", recipe, "--data", replay, *TINY, *heads, *ends, "--out", "run"]) == 0
    metrics = open_run("run").metrics()[-1]
    assert metrics["eval/streams"] == 3
    assert {"eval/return_mean", "eval/return_first", "eval/return_last"} <= set(metrics)
    capsys.readouterr()
    words = ["eval", "run", "--env", "CartPole-v1", "--episodes", "10", "--num-envs", "3"]
    assert main([*words, "--save", "played.ds"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:-3]] == ["1", "2", "3", "4", "5", "10"]
    assert said[-3].startswith("CartPole-v1, 3 streams, context recurrent, seed 1000")
    assert "; random " in said[-3]
    assert said[-2].startswith("a step of 3 streams together ")
    played = read_store("played.ds")
    assert np.array_equal(played.histories, np.arange(3).repeat(10))
    returns = played.returns.reshape(3, 10)
    first, last = returns[:, 0], returns[:, -1]
    errors = first.std(ddof=1) / 3**0.5, last.std(ddof=1) / 3**0.5
    expected = f"first {first.mean():.1f} ± {errors[0]:.1f}, last {last.mean():.1f} ± {errors[1]:.1f}"
    assert said[-1] == f"of 10 episodes: {expected} (mean and standard error over streams)"
    assert main([*words, "--rescan", "4", "--rescan-order", "return", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rescan"], found["rescan_order"], found["tasks"]) == (4, "return", None)
    assert np.shape(found["returns"]) == (3, 10)
    assert main([*words, "--rescan", "4"]) == 0
    assert ", state anew from the last 4 episodes, seed 1000" in capsys.readouterr().out


def test_a_run_that_knows_no_histories_forgets_after_every_episode(replay, capsys, failing):
    assert main(["train", "dm", "--data", replay, *TINY, "--out", "run"]) == 0
    assert main(["eval", "run", "--env", "CartPole-v1", "--episodes", "2", "--num-envs", "2"]) == 0
    assert "streams" not in capsys.readouterr().out
    said = failing("eval", "run", "--env", "CartPole-v1", "--rescan", "4")
    assert "eval: --rescan: expected --new-tasks or --tasks with it, got --rescan 4 alone" in said


def test_tasks_of_somebody_else_are_played_by_their_numbers(signpost, capsys):
    rng, steps = np.random.default_rng(0), 4
    ends = np.arange(steps) == steps - 1
    episodes = []
    for task in (0, 0, 0, 1, 1, 1):
        actions = rng.integers(3, size=steps)
        seen = np.minimum(np.arange(steps), 1)[:, None].astype(np.float32)
        rewards = (actions == task).astype(np.float32)
        episodes.append(Trajectory(seen, actions, rewards, np.zeros(steps, bool), ends))
    tasks = np.array([0, 0, 0, 1, 1, 1])
    dataset = Dataset.from_trajectories(episodes, spec=Spec((1,), "discrete", 3)).with_histories(tasks, tasks)
    write_store(dataset, "signs.ds")
    assert main(["train", "ad-mamba", "--data", "signs.ds", *TINY, "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--env", signpost, "--tasks", "1", "2", "--episodes", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tasks"], found["optimal"]) == ([1, 2], None)
    assert np.shape(found["returns"]) == (2, 6)
    assert main(["eval", "run", "--env", signpost, "--tasks", "1", "2", "--episodes", "6", "--rescan", "3"]) == 0
    assert "Signpost-v0, 2 tasks, state anew from the last 3 episodes, seed 1000" in capsys.readouterr().out


def test_streams_are_played_side_by_side_and_each_has_its_seeds():
    spec = Spec((4,), "discrete", 2)
    played = play_streams(RandomActor(spec, 0), "CartPole-v1", 2, episodes=3, seed=5)
    assert [len(own) for own in played] == [3, 3]
    starts = {tuple(episode.observations[0]) for own in played for episode in own}
    assert len(starts) == 6
    with pytest.raises(DataError, match=r"^play_streams: expected at least one stream and one episode, got 0 and 3$"):
        play_streams(RandomActor(spec, 0), "CartPole-v1", 0, episodes=3)
