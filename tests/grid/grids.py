"""Grids of tiny runs in CartPole, and rows made by hand."""

from scanrl.data import write_store
from scanrl.grid.reading import grid_from
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, TINY

SETTINGS = {k: v for k, v in TINY.items() if k not in ("train.checkpoint_every", "train.validate_every")}
SETTINGS |= {"eval.episodes": 2, "eval.num_envs": 2, "train.validation": 0.3}
# What a continued run may say otherwise than one that was never cut.
PASSING = ("seconds", "resumed", "when")


def grid_values(tmp_path, **changes):
    """Two recipes in CartPole, one seed, 12 updates, two checkpoints, two ways to remember."""
    data = tmp_path / "cartpole"
    if not data.exists():
        write_store(make_dataset(CARTPOLE), data)
    return {
        "tasks": {"pole": {"data": f"store:{data}", "env": "CartPole-v1", "targets": [20.0, 40.0]}},
        "recipes": {"tiny": {"recipe": "dmm-dc"}, "wide": {"recipe": "dmm-dc", "model": {"width": 12}}},
        "budgets": {"updates": 12},
        "settings": SETTINGS,
        "evaluate": {"checkpoints": 2, "contexts": ["recurrent", "window"]},
        **changes,
    }


def quiet(*_):
    """Nobody is told."""


def grid(tmp_path, **changes):
    return grid_from(grid_values(tmp_path, **changes))


def lasting(rows):
    """Rows without what may differ between two ways to the same end."""
    return [{name: value for name, value in row.items() if name not in PASSING} for row in rows]


def row(recipe="dm", task="hopper", seed=0, scores=((70.0,), (60.0,)), losses=(0.2, 0.1), context="recurrent", **other):
    """A finished run whose checkpoints scored `scores`, one number for each target."""
    played = [
        [{"summary": {"eval/normalized_score": x, "eval/return_mean": 10 * x}} for x in checkpoint]
        for checkpoint in scores
    ]
    checkpoints = [
        {"step": 10 * index, "validation_loss": loss, "played": [{"context": context, "scores": listed}]}
        for index, (loss, listed) in enumerate(zip(losses, played, strict=True), 1)
    ]
    return {
        "recipe": recipe,
        "task": task,
        "budget": "20 updates",
        "seed": seed,
        "asked": {"recipe": recipe, "settings": {}, "seed": seed},
        "status": "done",
        "fingerprint": "f" * 64,
        "env": "Hopper-v4",
        "target_returns": [3600.0],
        "episodes": 5,
        "eval_seed": 1000,
        "updates": 20,
        "batch_size": 4,
        "trained_context": 8,
        "parameters": 7,
        "machine": "m",
        "device": "cpu",
        "threads": 1,
        "revision": None,
        "versions": {"torch": "2"},
        "checkpoints": checkpoints,
        **other,
    }
