"""The Decision-Pretrained Transformer from the command to the curve."""

import json
from pathlib import Path

import numpy as np
import pytest

from scanrl.cli import main
from scanrl.collecting import collect_histories
from scanrl.data import read_store
from scanrl.data.queries import QuerySampler
from scanrl.envs.task_env import make_family
from scanrl.in_context import score_tasks
from scanrl.learner import Learner
from scanrl.policy import Policy
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stats import Stats
from scanrl.training import resume
from scanrl.types import DataError
from tests.runs import fit, outcome

pytestmark = pytest.mark.usefixtures("elsewhere")
TINY = {
    "model.width": 8,
    "model.context": 30,
    "model.dropout": 0.1,
    "train.batch_size": 3,
    "train.context_episodes": 2,
    "train.checkpoint_every": 2,
    "train.validate_every": 2,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def histories():
    return collect_histories("Darkroom-v0", "random", tasks=6, steps=400, optimal=True)


def test_the_command_records_what_the_optimal_policy_would_do(capsys):
    words = ["--env", "KeyToDoor-v0", "--histories", "--learner", "random", "--optimal", "--tasks", "4"]
    assert main(["collect", *words, "--steps", "2000", "-o", "x.ds"]) == 0
    assert capsys.readouterr().out.startswith("x.ds: 1")
    found = read_store("x.ds")
    assert found.source["optimal"] == "True"
    family = make_family("scanrl.envs.keydoor:KeyToDoor")
    states = family.initial(found.tasks)
    for time in range(50):  # the key is not seen, and what is best depends on it
        here = time < found.lengths
        step = found.offsets[:-1][here] + time
        assert np.array_equal(found.optimal_actions[step], family.best(found.tasks[here], states[here]))
        states[here] = family.move(found.tasks[here], states[here], found.actions[step], time).states
    shares = np.bincount(found.actions, minlength=5) / found.steps
    assert abs(shares - 0.2).max() < 0.02


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--env=Darkroom-v0", "--optimal"],
            "collect: --optimal: expected --histories of a learner with it, got no --hi",
        ),
        (["--replay=x", "--histories", "--optimal"], "expected --histories of a learner with it, got --replay"),
        (["--env=CartPole-v1", "--histories", "--optimal"], "CartPole-v1: expected one of Darkroom-v0, "),
        (
            ["--env=CartPole-v1", "--histories", "--learner=dqn", "--optimal"],
            "optimal: expected one of the learners q, noise, random, posterior, who know the optimal policy, got dqn",
        ),
        (
            ["--env=Darkroom-v0", "--histories", "--learner=random", "--explore-until=0.5"],
            "explore_until: expected none for random, which is so to the end, got 0.5",
        ),
    ],
)
def test_optimal_actions_that_nobody_knows_are_refused(words, message, failing):
    assert message in failing("collect", *words, "-o", "x.ds")


def test_it_trains_on_queries(histories):
    config = run_config("dpt", {**TINY, "model.width": 16, "train.learning_rate": 1e-2, "train.batch_size": 32})
    learner = Learner(Run(Path(), config), histories, Stats.fit(histories))
    assert isinstance(learner.sampler, QuerySampler)
    assert learner.sampler.sample().observations.shape == (32, 30, 2)
    assert not set(learner.training.tasks) & set(learner.held_out.tasks)
    losses = [learner.update()[0] for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(5), rel=0.2)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert learner.validate() == learner.validate()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(histories):
    whole, shorter = (fit(name, "dpt", histories, steps=6, overrides=TINY) for name in ("whole", "parts"))
    for step in ("step-6", "step-4"):  # back to where it had made two updates
        folder = shorter.path / "checkpoints" / step
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
    lines = (shorter.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (shorter.path / "metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["step"] <= 2))
    again = resume(shorter.path)
    assert outcome(again.path) == outcome(whole.path)


def test_the_command_shows_return_against_episode(histories, capsys):
    overrides = {**TINY, "eval.episodes": 2, "eval.num_envs": 3}
    run = fit("run", "dpt", histories, steps=2, overrides=overrides, env="Darkroom-v0")
    assert run.metrics()[-1]["eval/tasks"] == 3
    assert main(["eval", "run", "--new-tasks", "4", "--episodes", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:-2]] == ["1", "2", "3"]
    assert "its learner" not in said[-2]  # it imitates none
    assert main(["eval", "run", "--new-tasks", "4", "--rescan", "2"]) == 2
    assert "rescan: expected none for a model with a query, got 2" in capsys.readouterr().err


def test_it_acts_on_what_its_episodes_have_shown():
    """Weights are not needed to see it: the answer to a state changes with the episode before, and only then."""
    data = collect_histories("Darkroom-v0", "random", tasks=4, steps=400, optimal=True)
    learner = Learner(Run(Path(), run_config("dpt", TINY)), data, Stats.fit(data))
    shown = []
    model = learner.model.eval()

    class Witness(Policy):
        def act(self, *arguments, **named):
            actions = super().act(*arguments, **named)
            shown.append(self._streams._examples.mask.sum(1).tolist())
            return actions

    policy = Witness(model, forget="task", sample=True)
    scores, _ = score_tasks(policy, "Darkroom-v0", [3, 4], episodes=3)
    assert scores.returns.shape == (2, 3)
    assert shown == [[n, n] for n in (0, 20, 30) for _ in range(20)]


def test_data_and_settings_that_do_not_fit_are_refused(histories, failing):
    plain = collect_histories("Darkroom-v0", "random", tasks=3, steps=400)
    for recipe, data, changes, message in [
        ("dpt", plain, {}, "Darkroom-v0-random: optimal_actions: expected them for every step (scanrl collect "),
        (
            "dpt",
            histories,
            {"train.sequences": "windows"},
            "train.sequences: expected queries for a model with a query",
        ),
        (
            "ad",
            histories,
            {"train.sequences": "queries"},
            "train.sequences: expected others than queries without a mod",
        ),
        ("dpt", histories, {"train.final_weight": 1.0}, "train.final_weight: expected 0 with queries, got 1.0"),
        ("dpt", histories, {"eval.context": 5}, "eval.context: expected recurrent for a model with a query, got 5"),
    ]:
        with pytest.raises(DataError) as error:
            fit("run", recipe, data, overrides={**TINY, **changes})
        assert str(error.value).startswith(message)
