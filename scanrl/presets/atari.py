"""Atari: recipe x game at the protocol of the papers, with what they printed.

Half a million steps of DQN-replay, 1 % of a game's recording, in five passes (`dt`) or ten; six layers of width 128; a
short warm-up, then a cosine to a tenth. Ten episodes of a model whose actions are drawn, on the window it was trained
on, without sticky actions. Which checkpoint the printed numbers are of is not told; the shared code evaluates after
every pass.

Departures: the warm-up of 10,240 tokens is rounded to whole updates. `dc` has no further linear map behind its
convolutions (the paper's Qbert and Seaquest). The papers draw trajectories from 50 buffers of a game; the reader takes
one from its beginning. A tenth of the episodes is held out.
`train.validation: 0` trains on all of them. Those of `scanrl.models.atari` hold too, and standardised pixels
(`model.pixels`) learn where the papers' do not in short runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scanrl.envs.atari import TARGETS
from scanrl.models.atari import ATARI, ATARI_TRAINING
from scanrl.presets.preset import Preset, Published, columns

__all__ = ["atari"]

SELECTION = "3 seeds of 10 episodes; which checkpoint is not told"
SOURCES = {
    "DMM24": ("Kim 2024, arXiv 2408.10517; which set of random and human scores is not told", SELECTION),
    "RATE": ("as RATE reprints it, from raw points by set (b)", SELECTION),
}
SCORES = """
game     dt:DMM24 dc:DMM24 dm:DMM24 dmm-dl:DMM24 dmm-dc:DMM24 mambadm:RATE dt:RATE dm:RATE
breakout 284.5    334.3    256.9    202.4        362.2        365.3        261.1   239.2
qbert    38.1     64.4     47.6     59.1         63.6         74.4         15.4    42.3
pong     106.8    109.6    104.0    104.0        106.8        110.8        107.1   63.2
seaquest 2.8      2.6      2.2      2.6          2.7          2.9          2.5     2.2
"""
"""Normalised scores: a column is recipe:source."""

STEPS = 500_000
WARMUP_TOKENS = 512 * 20
PASSES = {"dt": 5}
"""Passes over the data; ten where it is not said."""
CHECKPOINTS = 10
GPT2 = {"dt_init": "gpt2_reset"}
RELEASED: dict[str, dict[str, Any]] = {
    "dm": GPT2,
    "dmm-c": {**GPT2, "pattern": "(modal_conv mamba:none)*6"},
    "dmm-l": {**GPT2, "pattern": "(modal_linear mamba:none)*6"},
    "dmm-dc": GPT2,
    "dmm-dl": GPT2,
}
"""What released code does beside, as in the presets of locomotion."""
LONG: dict[str, dict[str, dict[str, Any]]] = {
    "pong": {"dt": {"model.context": 50}, "dm": {"model.context": 50}, "mambadm": {"model.context": 50}}
}
LARGE: dict[str, dict[str, int]] = {"pong": {"dt": 512, "dc": 512}}
"""Game -> recipe -> longer windows, and larger batches."""


def atari() -> Iterator[Preset]:
    """Every preset, recipe by recipe."""
    published: dict[tuple[str, str], list[Published]] = {}
    for game, recipe, source, entry in columns(SCORES):
        published.setdefault((recipe, game), []).append(Published(float(entry), None, *SOURCES[source]))
    for recipe in ATARI:
        for game in dict.fromkeys(game for _, game in published):
            name, numbers = game.capitalize(), tuple(published.get((recipe, game), ()))
            data = f"DQN Replay Dataset, {name}: {STEPS:,} steps (the papers draw them from 50 buffers)"
            yield Preset(
                f"{recipe}/{game}", recipe, game, f"scanrl/{name}-v0", data, "", _settings(recipe, game), numbers
            )


def _settings(recipe: str, game: str) -> dict[str, Any]:
    """Of the model, of training, of evaluation."""
    model = {f"model.{key}": value for key, value in (ATARI[recipe] | RELEASED.get(recipe, {})).items()}
    model |= LONG.get(game, {}).get(recipe, {})
    train = {**ATARI_TRAINING[recipe]}
    batch = int(LARGE.get(game, {}).get(recipe) or train["batch_size"])
    updates = PASSES.get(recipe, 10) * STEPS // batch
    every = -(-updates // CHECKPOINTS)
    tokens = 3 * int(model["model.context"]) * batch
    train |= {
        "batch_size": batch,
        "steps": updates,
        "schedule": "cosine",
        "warmup": -(-WARMUP_TOKENS // tokens) / updates,
        "checkpoint_every": every,
        "validate_every": every,
        "keep": 0,
    }
    acting = {
        "every": every,
        "episodes": 10,
        "targets": [TARGETS[game.capitalize()]["code"]],
        "context": model["model.context"],
        "sample": True,
    }
    return {**model, **{f"train.{k}": v for k, v in train.items()}, **{f"eval.{k}": v for k, v in acting.items()}}
