"""Training on learning histories, from the command to the curve, and what docs/in_context.md says."""

import copy
import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.cli import main
from scanrl.collecting import collect_histories
from scanrl.data import read_store
from scanrl.data.histories import HistorySampler, iterate_histories, learning_curve
from scanrl.envs import ENVS
from scanrl.envs.reference_scores import reference_score
from scanrl.envs.task_env import make_family
from scanrl.learner import Learner
from scanrl.models.recipes import RECIPES
from scanrl.policy import Policy
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stats import Stats
from scanrl.training import resume
from tests.runs import fit, outcome

pytestmark = pytest.mark.usefixtures("elsewhere")
PAGE = Path(__file__).parents[1] / "docs" / "in_context.md"
TINY = {
    "model.width": 8,
    "model.state_size": 4,
    "train.batch_size": 3,
    "train.context_episodes": 3,
    "train.checkpoint_every": 2,
    "train.validate_every": 2,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def histories():
    return collect_histories("Darkroom-v0", "noise", tasks=6, steps=400, episodes=10)


@pytest.mark.parametrize("name", ["ad", "ad-mamba", "dmh"])
def test_recipes_of_learning_in_context_train_on_histories(name, histories):
    config = run_config(name, {**TINY, "train.steps": 60, "train.learning_rate": 1e-2})
    assert config.train.sequences == "histories"
    assert RECIPES[name]().model.context == 10 * 20
    learner = Learner(Run(Path(), config), histories, Stats.fit(histories))
    assert isinstance(learner.sampler, HistorySampler)
    assert learner.sampler.sample().observations.shape == (3, 60, 2)
    assert not set(learner.training.tasks) & set(learner.held_out.tasks)
    losses = [learner.update()[0] for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(5), rel=0.2)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ad-mamba", {"train.context_order": "learning"}),
        ("ad-mamba", {"train.context_order": "return"}),
        ("dmh", {"model.subgoal_steps": 5, "model.subgoal_choices": (2, 5, 9)}),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(histories, name, changes):
    overrides = {**TINY, **changes}
    whole = fit("whole", name, histories, steps=6, overrides=overrides)
    shorter = fit("parts", name, histories, steps=6, overrides=overrides)
    for step in ("step-6", "step-4"):  # back to where it had made two updates
        folder = shorter.path / "checkpoints" / step
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
    lines = (shorter.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (shorter.path / "metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["step"] <= 2))
    again = resume(shorter.path)
    assert outcome(again.path) == outcome(whole.path)


@pytest.mark.parametrize("validation", [0.3, 0.0])
def test_a_checkpoint_acts_as_often_as_held_out_loss_says(histories, validation):
    overrides = {**TINY, "train.validation": validation, "model.subgoal_choices": (2, 5, 9), "train.keep": 0}
    overrides |= {"model.subgoal_steps": 5, "train.learning_rate": 1e-2}
    run = fit("run", "dmh", histories, steps=8, overrides=overrides)
    lines = {line["step"]: line for line in run.metrics() if "val/loss" in line}
    for path in checkpoints_of(run.path):
        checkpoint = load_checkpoint(path)
        model, contexts = checkpoint.model().eval(), list(iterate_histories(*_data(run, histories), goals=True))
        with torch.inference_mode():
            losses = torch.cat([model.choice_losses(batch) for batch in contexts], 1)
        steps = torch.cat([batch.mask.sum(1) for batch in contexts])
        assert len(set(steps.tolist())) > 1
        assert model.steps == copy.deepcopy(model).choose(losses, steps)
        if validation:
            found = [lines[checkpoint.step][f"val/loss_every_{c}"] for c in (2, 5, 9)]
            assert found == pytest.approx(np.average(losses, axis=1, weights=steps).tolist(), rel=1e-4)
            assert lines[checkpoint.step]["val/subgoal_steps"] == model.steps
    assert Policy.load(run.path, forget="task").model.steps == model.steps


def _data(run, histories):
    """What is held out, or all of it; episodes of a context and contexts of a batch."""
    settings = run.config.train
    split = histories.split(settings.validation, settings.seed)[1] if settings.validation else histories
    return split, settings.context_episodes, 10**6


def test_the_command_shows_return_against_episode(histories, capsys):
    fit("run", "ad-mamba", histories, steps=2, overrides=TINY, env="Darkroom-v0")
    assert main(["eval", "run", "--new-tasks", "4", "--episodes", "12", "--save", "played"]) == 0
    said = capsys.readouterr().out
    shown = [line.split()[0] for line in said.splitlines()[1:-2]]
    assert shown == ["1", "2", "3", "4", "5", "10", "12"]
    summary, cost = said.splitlines()[-2:]
    assert summary.startswith("Darkroom-v0, 4 tasks, context recurrent, seed 1000; random 0.2")
    curve = learning_curve(histories)
    assert summary.endswith(f", its learner {curve[0]:.2f} to {curve[-1]:.2f} in {len(curve)} episodes")
    assert re.fullmatch(r"a step of 4 tasks together [0-9.]+ ms, memory of each [1-9][0-9]* KB", cost)
    _, held_out = make_family(ENVS["Darkroom-v0"]).split()
    played = read_store("played")
    assert np.array_equal(played.tasks, np.repeat(held_out[:4], 12))
    assert np.array_equal(played.histories, np.repeat(np.arange(4), 12))
    assert main(["eval", "run", "--tasks", "3", "8", "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == [3, 8]
    assert np.array(found["returns"]).shape == (2, 2)
    assert found["learner"] == pytest.approx(curve, abs=1e-6)
    assert found["step_ms"] > 0
    assert main(["eval", "run", "--new-tasks", "4", "--episodes", "3", "--plot", "deep/curve.svg"]) == 0
    drawn = Path("deep/curve.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "Darkroom-v0: mean return of 4 tasks, 95 % interval" in drawn
    assert "optimal" in drawn
    assert "its learner" in drawn
    capsys.readouterr()
    assert main(["eval", "run", "--new-tasks", "4", "--plot", "curve.png"]) == 2
    assert "eval: --plot: expected a name that ends with .svg, got curve.png" in capsys.readouterr().err
    assert main(["eval", "run", "--tasks", "3", "--new-tasks", "4"]) == 2
    assert "eval: expected --new-tasks or --tasks, got both" in capsys.readouterr().err
    assert main(["eval", "run", "--new-tasks", "17"]) == 2
    assert "Darkroom-v0: tasks: expected 1 to 16 held-out ones, got 17" in capsys.readouterr().err


def test_a_run_with_an_environment_ends_with_a_curve(histories):
    config = {**TINY, "eval.episodes": 2, "eval.num_envs": 3}
    run = fit("run", "ad-mamba", histories, steps=2, overrides=config, env="Darkroom-v0")
    last = {name: value for line in run.metrics() for name, value in line.items()}
    assert last["eval/tasks"] == 3
    assert {"eval/return_first", "eval/return_last", "eval/return_mean", "eval/share_last"} <= set(last)


def test_other_recipes_take_histories_too(histories):
    learner = Learner(
        Run(Path(), run_config("bc", {**TINY, "train.sequences": "histories"})), histories, Stats.fit(histories)
    )
    assert torch.isfinite(torch.tensor(learner.update())).all()


def test_the_commands_of_the_page_run(monkeypatch, capsys):
    shorter = {"--steps 100000": "--steps 800", "--steps 1000 ": "--steps 2 ", "--episodes 40": "--episodes 2"}
    [block] = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    small = "--train.batch-size 2 --eval.episodes 1 --model.width 8"
    for line in block.splitlines():
        for long, short in shorter.items():
            line = line.replace(long, short)
        line += f" {small}" if "scanrl train" in line else ""
        assert main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert "Darkroom-v0, 16 tasks" in capsys.readouterr().out


def test_the_page_has_a_row_for_every_environment_and_its_numbers():
    rows = re.findall(r"^\| `(\w+-v0)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert {env_id for env_id, _ in rows} == set(ENVS)
    for env_id, row in rows:
        family, scale = make_family(ENVS[env_id]), reference_score(env_id)
        _, _, horizon, split, optimal, random = row.split(" | ")
        assert int(horizon) == family.horizon
        assert split == "{}, {}".format(*family.split_sizes)
        for shown, value in ((optimal, scale.high), (random, scale.low)):
            digits = len(shown.partition(".")[2])
            assert abs(float(shown) - value) <= 0.51 * 10**-digits
