"""Collecting datasets, from Python and by the command."""

import importlib.util
import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from scanrl import learned
from scanrl.cli import main
from scanrl.collecting import collect_episodes, collect_histories
from scanrl.data import check, load, read_store, write_store
from scanrl.data.histories import HistorySampler
from scanrl.envs import ENVS
from scanrl.envs.darkroom import Darkroom
from scanrl.learned import LoadedActor
from scanrl.types import DataError
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, fit

pytestmark = pytest.mark.usefixtures("elsewhere")
needs_sb3 = pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra [sb3]")


class Signpost(gym.Env):
    """Somebody else's environment with a `task` option: +1 for the action that is the task."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(3, start=5)

    def __init__(self, task=0):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.ones(1, np.float32), float(action - 5 == self.task), False, self.left == 0, {}


@pytest.fixture
def signpost():
    gym.register("Signpost-v0", Signpost)
    yield "Signpost-v0"
    del gym.registry["Signpost-v0"]


@pytest.mark.parametrize("learner", ["q", "noise"])
def test_the_command_collects_histories_that_can_be_trained_on(learner, capsys):
    words = ["--env", "Darkroom-v0", "--histories", "--tasks", "5", "--steps", "2500", "--history-episodes", "20"]
    assert main(["collect", *words, "--learner", learner, "-o", "hist.ds"]) == 0
    assert capsys.readouterr().out.startswith("hist.ds: 600 episodes of 5 tasks, 12000 steps, mean return ")
    found = load("hist.ds")
    assert not check(found)
    training, _ = Darkroom().split()
    assert set(found.tasks) <= set(training)
    assert np.array_equal(np.bincount(found.histories), np.full(30, 20))
    assert found.spec.env_id == "Darkroom-v0"
    assert found.source == {"env": "Darkroom-v0", "options": "{}", "learner": learner, "seed": "0"}
    assert main(["data", "info", "hist.ds", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tasks"], told["histories"]) == (5, 30)
    batch = HistorySampler(found, 10, 4, seed=0).sample()
    assert batch.observations.shape == (4, 200, 2)
    late = found.returns.reshape(30, 20)
    assert late[:, 10:].mean() > late[:, :10].mean()


def test_options_reach_the_environment():
    found = collect_histories("KeyToDoor-v0", "noise", tasks=3, steps=70, episodes=7, options={"size": 3, "horizon": 9})
    assert found.observations.max() == 2
    assert set(found.lengths) == {9}
    words = ["--env", "TMaze-v0", "--episodes", "3", "--env-options", "length=4", "penalty=true"]
    assert main(["collect", *words, "-o", "maze.ds"]) == 0
    maze = read_store("maze.ds")
    assert maze.lengths.tolist() == [5, 5, 5]
    assert maze.rewards.min() == -0.25


@pytest.mark.parametrize("env_id", ENVS)
def test_every_environment_has_histories(env_id):
    found = collect_histories(env_id, "noise", tasks=2, steps=10_000, episodes=10)
    assert not check(found)
    first, last = (found.returns.reshape(-1, 10)[:, i].mean() for i in (0, -1))
    assert last > first


def test_equal_seeds_collect_equal_data():
    def fingerprint(seed):
        return collect_histories("Darkroom-v0", "q", tasks=3, steps=1000, episodes=10, seed=seed).fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_a_random_policy_is_recorded(capsys):
    assert main(["collect", "--env", "CartPole-v1", "--episodes", "4", "--num-envs", "2", "-o", "x.ds"]) == 0
    assert "x.ds: 4 episodes, " in capsys.readouterr().out
    found = read_store("x.ds")
    assert (len(found), found.tasks, found.spec.env_id) == (4, None, "CartPole-v1")
    again = collect_episodes("CartPole-v1", episodes=4, num_envs=3)
    assert again.fingerprint == found.fingerprint


def test_a_run_is_recorded():
    fit("run", data=make_dataset(CARTPOLE), steps=2)
    assert main(["collect", "--env", "CartPole-v1", "--policy", "run", "--episodes", "2", "-o", "x.ds"]) == 0
    assert len(read_store("x.ds")) == 2


@pytest.mark.parametrize("order", ["recorded", "return"])
def test_a_replay_is_a_history(order):
    data = make_dataset()
    write_store(data, "replay.ds")
    assert main(["collect", "--histories", "--replay", "replay.ds", "--order", order, "-o", "x.ds"]) == 0
    found = read_store("x.ds")
    assert np.array_equal(found.returns, np.sort(data.returns) if order == "return" else data.returns)
    assert set(found.histories) == {0}


@needs_sb3
@pytest.mark.slow
def test_a_learner_of_stable_baselines_is_recorded(signpost):
    words = ["--env", signpost, "--histories", "--learner", "ppo", "--tasks", "2", "--steps", "2048"]
    assert main(["collect", *words, "-o", "x.ds"]) == 0
    found = read_store("x.ds")
    assert not check(found)
    assert set(found.tasks) == {0, 1}
    assert set(found.histories) == {0, 1}
    for task in (0, 1):
        own = found.select(np.flatnonzero(found.tasks == task))
        assert own.steps == 2048
        assert np.array_equal(own.rewards, own.actions == task)  # actions count from 0


@needs_sb3
@pytest.mark.slow
def test_a_model_of_stable_baselines_is_recorded():
    import stable_baselines3

    stable_baselines3.PPO("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu").save("ppo.zip")
    assert main(["collect", "--env", "CartPole-v1", "--policy", "sb3:ppo.zip", "--episodes", "2", "-o", "x.ds"]) == 0
    assert len(read_store("x.ds")) == 2


@needs_sb3
@pytest.mark.parametrize("name", ["A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"])
def test_a_loaded_model_acts_as_the_saved_one_and_no_pickle_is_read(name, monkeypatch, tmp_path):
    import stable_baselines3

    env = "CartPole-v1" if name in ("DQN", "PPO") else "Pendulum-v1"
    shape = {"net_arch": [8, 6], "activation_fn": torch.nn.ELU}
    saved = getattr(stable_baselines3, name)("MlpPolicy", env, policy_kwargs=shape, device="cpu")
    saved.save(tmp_path / f"{name.lower()}.zip")

    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for module in ("pickle", "cloudpickle"):
        monkeypatch.setattr(importlib.import_module(module), "loads", refuse)
    actor = LoadedActor(tmp_path / f"{name.lower()}.zip", env)
    observations = np.stack([gym.make(env).observation_space.sample() for _ in range(5)]) / 10
    expected, _ = saved.predict(observations, deterministic=True)
    assert np.allclose(actor.act(observations, np.zeros(5), np.zeros(5, bool)), expected, atol=1e-6)


@needs_sb3
def test_a_model_of_another_environment_is_refused(tmp_path):
    import stable_baselines3

    stable_baselines3.PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "ppo.zip")
    with pytest.raises(DataError, match=r"^sb3:.*ppo.zip: expected a model of ppo, got RuntimeError: .*size mismatch"):
        LoadedActor(tmp_path / "ppo.zip", "Acrobot-v1")


def test_without_stable_baselines_one_line_says_what_to_install(monkeypatch, failing):
    monkeypatch.setattr(learned.importlib.util, "find_spec", lambda name: None)
    wanted = "expected the package stable-baselines3: pip install 'scanrl[sb3]'"
    assert wanted in failing("collect", "--env", "Hopper-v5", "--histories", "--learner", "sac", "--tasks=1", "-o", "x")
    assert wanted in failing("collect", "--env", "CartPole-v1", "--policy", "sb3:ppo.zip", "-o", "x")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "collect: expected --env or --replay, got neither"),
        (["--env=Darkroom-v0", "--replay=x", "--histories"], "collect: expected --env or --replay, got both"),
        (["--replay=x"], "collect: --replay: expected --histories with it, got none"),
        (["--env=Darkroom-v0", "--steps=0"], "collect: --steps: expected at least 1 and finite, got 0"),
        (["--env=Darkroom-v0", "--histories", "--tasks=66"], "tasks: expected 1 to 65 (the training tasks), got 66"),
        (["--env=Darkroom-v0", "--histories", "--steps=1999"], "steps: expected at least 2000 (one history of 100 ep"),
        (
            ["--env=Darkroom-v0", "--histories", "--learner=noise", "--explore-until=2"],
            "explore_until: expected a fraction above 0 and at most 1, got 2",
        ),
        (
            ["--env=Darkroom-v0", "--histories", "--learner=posterior", "--explore-until=0.5"],
            "explore_until: expected none for posterior, which does not explore, got a fraction",
        ),
        (
            ["--env=Darkroom-v0", "--histories", "--learner=dqn", "--history-episodes=2"],
            "episodes: expected none for dqn, which has its own way, got 2",
        ),
        (
            ["--env=Darkroom-v0", "--histories", "--learner=sarsa"],
            "expected one of q, noise, random, posterior, a2c, ",
        ),
        (["--env=Hopper-v5", "--histories"], "Hopper-v5: expected one of Darkroom-v0, "),
        (["--env=Darkroom-v0", "--policy=rundom"], "policy: expected random, sb3:FILE.zip or a run folder, got 'run"),
        (["--env=Darkroom-v0", "--env-options", "size"], "collect: --env-options: expected name=value, got 'size'"),
        (["--env=Darkroom-v0", "--env-options", "sise=3"], "Darkroom: option: expected one of task, tasks, size, "),
        (["--env=CartPole-v1", "--env-options", "a=3"], "CartPole-v1: cannot be made with {'a': 3}: TypeError"),
        (["--env=Darkrom-v0"], "Darkrom-v0: no such environment; did you mean Darkroom-v0?"),
    ],
)
def test_what_cannot_be_collected_is_said_in_one_line(words, message, failing):
    assert message in failing("collect", *words, "-o", "x.ds")


def test_a_folder_in_use_is_refused_before_the_work(elsewhere, failing, monkeypatch):
    write_store(make_dataset(), "x.ds")
    monkeypatch.setattr("scanrl.collecting.collect_histories", lambda *a, **k: pytest.fail("began to work"))
    said = failing("collect", "--env=Darkroom-v0", "--histories", "-o", "x.ds")
    assert "x.ds: expected a new or empty folder, got one with files" in said


def test_a_learner_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"^steps: expected at least 1000 "):
        collect_histories("Darkroom-v0", "q", tasks=1, steps=999, episodes=50)
