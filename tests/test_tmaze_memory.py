"""Memory over a whole corridor: at the end of a T-maze models turn to the side that only the first step shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from results.subgoals import curriculum, maze
from scanrl.batch import Batch
from scanrl.models.build import Model, build_model
from scanrl.models.hybrid import HybridModel
from scanrl.models.recipes import recipe
from scanrl.stats import Stats
from scanrl.types import Spec

SPEC = Spec((2,), "discrete", 4)


def model_of(name: str, length: int, **changes: object) -> Model:
    steps = length + 1
    sizes = {"width": 64, "context": steps, "max_length": steps, **changes}
    stats = Stats(np.zeros(2, np.float32), np.ones(2, np.float32), 1.0, None, None, steps, 1.0, 1.0)
    return build_model(replace(recipe(name).model, **sizes), SPEC, stats)  # type: ignore[arg-type]


def all_right(model: Model, batch: Batch) -> bool:
    model.eval()
    with torch.no_grad():
        if isinstance(model, HybridModel):
            model.choose(model.choice_losses(batch, final_weight=1.0))
        right = (model.actions(batch) == batch.actions) | ~batch.mask
    model.train()
    return bool(right.all())


def learn(model: Model, lengths: list[int], most: int = 400) -> int:
    """Updates until both episodes of the last length are acted out without an error, each length in its turn."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4, fused=True)
    updates = 0
    for length in lengths:
        batch, before = maze(length), updates
        while not all_right(model, batch):
            assert updates - before < most, f"expected a way through {length} steps within {most} updates"
            for _ in range(5):
                optimizer.zero_grad()
                model.loss(batch, final_weight=1.0).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            updates += 5
    return updates


CASES = {
    "dt": {"layout": "sa", "pattern": "(attention mlp)*2", "time_embedding": True},
    "dm": {"layout": "sa", "pattern": "(mamba mlp)*2", "time_embedding": False},
    "dmh": {"subgoal_steps": 10},
    "dmh of several": {"subgoal_choices": (5, 10, 20)},
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_turn_fifty_steps_after_the_sign_is_learned(name: str) -> None:
    model = model_of(name.partition(" ")[0], 50, **CASES[name])
    assert learn(model, [50]) > 0  # an untrained model does not guess them


def test_the_mazes_are_solved_episodes_of_both_sides() -> None:
    batch = maze(30)
    assert len(torch.unique(batch.observations[:, 0, 1])) == 2
    assert (batch.rewards.sum(1) == 1).all()
    assert batch.mask.shape == (2, 31)


def test_lengths_that_double_lead_the_hybrid_through_five_hundred_steps() -> None:
    model = model_of("dmh", 500, subgoal_steps=20)
    learn(model, curriculum(500))


def test_a_model_that_has_not_learned_is_told_from_one_that_has() -> None:
    assert not all_right(model_of("dmh", 50), maze(50))
