"""Every recipe on every kind of data: it begins to train, or is refused in one line before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from scanrl.data import Dataset
from scanrl.learner import Learner
from scanrl.models.recipes import RECIPES
from scanrl.rollout import RandomActor, environment_spec, rollout
from scanrl.run import Run
from scanrl.settings import run_config
from scanrl.stats import Stats
from scanrl.training import check_run, run_training
from scanrl.types import DataError
from tests import spaces_cases as cases
from tests.conftest import make_dataset

CHOICES = spaces.Discrete(3)
KINDS = {
    "vector, real actions": (cases.VECTOR, cases.MOVE),
    "vector, choices": (cases.VECTOR, CHOICES),
    "vector, several choices": (cases.VECTOR, cases.SEVERAL),
    "vector, mixed actions": (cases.VECTOR, cases.DICT_ACTION),
    "dictionary, real actions": (cases.DICT_SEEN, cases.MOVE),
    "dictionary, mixed actions": (cases.DICT_SEEN, cases.TUPLE_ACTION),
    "pictures, choices": (cases.IMAGE, CHOICES),
    "pictures, real actions": (cases.COLOUR, cases.MOVE),
    "pictures, mixed actions": (cases.IMAGE, cases.DICT_ACTION),
}
PARTS = "several choices", "mixed actions"
NO_PICTURES = r"model.{}: expected {} with pictures, got .* \(recipe {}\)"
NO_PARTS = r"model.state_weight: expected 0 with actions of several parts, got 1 \(recipe {}\)"


def refusal(name: str, kind: str) -> str | None:
    """What a recipe says of data it is not for."""
    pictures = "pictures" in kind
    if name == "dpt":
        if pictures:
            return NO_PICTURES.format("query", "false", name)
        return "optimal_actions: expected them for every step"
    if name.startswith("edt") and pictures:
        return NO_PICTURES.format("state_weight", 0, name)
    if name.startswith("edt") and kind.endswith(PARTS):
        return NO_PARTS.format(name)
    if name == "dmh" and pictures:
        return NO_PICTURES.format("subgoal_steps", 0, name)
    if name.startswith("ad") and pictures:
        return "observations: expected vectors in learning histories, got images"
    return None


def recorded(kind: str) -> Dataset:
    """A few episodes of draws from the spaces, as learning histories of one task where that is asked for."""

    def make() -> cases.Sampled:
        return cases.Sampled(*KINDS[kind])

    spec = environment_spec(make)
    return Dataset.from_trajectories(rollout(RandomActor(spec, 0), make, episodes=4, seed=0), spec=spec, name="drawn")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_what_it_fits_and_says_where_it_does_not(name: str, kind: str) -> None:
    dataset = recorded(kind)
    small = {"model.width": 16, "train.batch_size": 2, "model.heads": 1, "train.context_episodes": 2}
    config = run_config(name, {**small, "train.steps": 1})
    message = refusal(name, kind)
    if message is not None:
        with pytest.raises(DataError, match=message):
            check_run(config, dataset)
        return
    learner = Learner(Run(Path(), config), dataset, Stats.fit(dataset))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    found = learner.update()
    assert np.isfinite(list(map(float, found))).all()
    moved = [not torch.equal(old, new) for old, new in zip(before, learner.model.parameters(), strict=True)]
    assert any(moved)


def test_precision_that_a_model_has_no_use_for_is_refused_before_anything_is_written(tmp_path) -> None:
    config = run_config("dmh", {"train.precision": "bfloat16", "model.width": 16, "train.steps": 1})
    with pytest.raises(DataError, match=r"train.precision: expected float32 for a model with sub-goals, got bfloat16"):
        run_training(config, make_dataset(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
