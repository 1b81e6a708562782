"""MuJoCo and AntMaze: recipe x D4RL task at the protocol of the papers, with what they printed and how it was selected.

Settings common to most of them (Kim 2024, Kim et al. 2024, Ota 2024 and Chen et al. 2021 share one code base): 100,000
updates of 64 windows, AdamW whose step size rises over the first tenth and then stays, weight decay 1e-4, gradients
clipped at 0.25, dropout 0.1; an evaluation of 100 episodes for each target return after every 10,000 updates, the last
window recomputed at every step.

Departures: the papers score in the `v3` environments of mujoco-py and D4RL's own mazes, which no longer install: here
it is `v4`. Returns are divided by a power of ten of the data's own (the papers: 1000, and 1 in mazes). A state space's
own parameters are not decayed. A tenth of the episodes is held out, so that a checkpoint can be selected without
looking at a score; `train.validation: 0` trains on all of them, as the papers do. Those of the recipes hold too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scanrl.presets.preset import Preset, Published, columns

__all__ = ["EVALUATIONS", "PAPERS", "locomotion"]

MAXIMUM = "maximum over target returns and over the ten evaluations in training"
SOURCES = {
    "DMM24": ("Kim 2024, arXiv 2408.10517, table 1", MAXIMUM),
    "DMM24b": ("Kim 2024, arXiv 2408.10517, table of the double models", MAXIMUM),
    "Ota": ("Ota 2024, arXiv 2403.19925, as RATE reprints it", "maximum over the evaluations in training (its author)"),
    "MambaDM": ("MambaDM 2024, arXiv 2406.02013, as RATE reprints it", "not stated"),
    "CORL-last": ("re-run by CORL", "last checkpoint"),
    "CORL-best": ("re-run by CORL", "best checkpoint"),
}
"""Table -> who printed it, and which checkpoint a number in it is of."""

SCORES = """
task                       dt:DMM24 edt:DMM24 dc:DMM24 ds4:DMM24 dm:DMM24 dmm-l:DMM24 dmm-c:DMM24 dmm-dl:DMM24b dmm-dc:DMM24b mambadm:MambaDM dm:Ota    dt:CORL-last dt:CORL-best
hopper-medium              68.4     70.4      89.7     54.2      86.2     96.2        94.2        98.6          96.5          85.7±7.8        83.5±12.5 65.10        69.42
hopper-medium-replay       82.5     89.4      84.8     49.6      81.7     95.0        91.2        95.9          92.1          86.1±2.5        82.6±4.6  81.77        88.74
hopper-medium-expert       108.7    104.7     110.1    110.8     111.0    110.2       109.9       110.0         109.5         110.5±0.3       111.1±0.3 110.44       111.18
walker2d-medium            76.6     75.8      79.8     78.0      77.6     81.3        81.6        81.4          82.2          78.2±0.6        78.2±0.6  67.63        74.70
walker2d-medium-replay     65.9     73.3      78.2     69.0      72.1     74.1        73.9        75.1          78.9          73.4±2.6        70.9±4.3  59.86        68.22
walker2d-medium-expert     109.0    107.8     109.2    105.7     108.3    110.2       109.5       110.4         109.8         108.8±0.1       108.3±0.5 107.11       108.71
halfcheetah-medium         42.8     43.0      43.0     42.5      42.8     43.0        43.3        43.2          43.3          42.8±0.1        42.8±0.1  42.20        42.73
halfcheetah-medium-replay  39.1     37.8      41.1     15.2      39.8     41.1        41.3        41.1          41.5          39.1±0.1        39.6±0.1  38.91        40.31
halfcheetah-medium-expert  85.5     89.7      93.1     92.7      90.6     92.6        92.5        92.6          92.2          86.5±1.2        91.9±0.6  91.55        93.40
antmaze-umaze              69.2     67.8      86.0     63.4      68.4     88.0        85.0        80.0          82.0          -               -         57.00        64.50
antmaze-umaze-diverse      61.0     58.3      81.0     64.6      62.1     80.0        78.0        74.0          77.0          -               -         51.75        60.50
"""  # noqa: E501
"""Normalised scores: a column is recipe:table, an entry the mean, with ± the spread over seeds where it was printed."""


NO_TARGET = ("edt", "reinformer")
"""Recipes that predict the return they ask for."""

COMMON = {
    "train.steps": 100_000,
    "train.batch_size": 64,
    "train.schedule": "constant",
    "train.warmup": 0.1,
    "train.weight_decay": 1e-4,
    "train.clip_norm": 0.25,
    "train.checkpoint_every": 10_000,
    "train.validate_every": 10_000,
    "train.keep": 0,
    "model.dropout": 0.1,
    "eval.every": 10_000,
    "eval.episodes": 100,
}
EVALUATIONS = 10
"""Checkpoints that are scored."""

TARGETS = {"hopper": 3600.0, "halfcheetah": 12000.0, "walker2d": 5000.0}
MAZE_TARGETS = (1.0, 10.0, 100.0, 1000.0, 100_000.0)
ENVIRONMENTS = {
    "hopper": "Hopper-v4",
    "halfcheetah": "HalfCheetah-v4",
    "walker2d": "Walker2d-v4",
    # Only D4RL's recordings of the second maze are diverse: there, too, it is scored from one start to one goal.
    "antmaze": "antmaze-umaze-v4@origin=start",
}
GPT2 = {"model.dt_init": "gpt2_reset"}
METAMAMBA = {"train.learning_rate": 1e-4, "model.context": 8, **GPT2}
# The paper's table of parameter counts fixes the widths: half of them in Walker2d.
SINGLE, DOUBLE, NARROW = {"model.width": 128}, {"model.width": 64}, {"model.width": 32}
HALF = {
    "train.learning_rate": 1e-4,
    "train.steps": 50_000,
    "train.checkpoint_every": 5000,
    "train.validate_every": 5000,
    "eval.every": 5000,
}
EDT = {"model.width": 512, "train.batch_size": 256, "train.warmup": 0.2}
NO_SKIP = "({} mamba:none)*3"
PAPERS: dict[str, dict[str, dict[str, Any]]] = {
    "dt": {"": {"model.context": 20, "train.learning_rate": 1e-4}},
    "dm": {
        "": {"model.context": 20, "model.width": 128, "train.learning_rate": 1e-3, **GPT2},
        "hopper-medium": {"model.width": 256, "train.learning_rate": 1e-4},
        "hopper-medium-replay": {"model.width": 256, "train.learning_rate": 1e-4},
        "walker2d-medium": {"train.learning_rate": 1e-4},
    },
    "dc": {
        "": {"model.context": 8, "model.width": 128, "train.learning_rate": 1e-3},
        "hopper": {"model.width": 256, "train.learning_rate": 1e-4},
    },
    "dmm-c": {"": {**METAMAMBA, **SINGLE, "model.pattern": NO_SKIP.format("modal_conv")}, "walker2d": NARROW},
    "dmm-l": {"": {**METAMAMBA, **SINGLE, "model.pattern": NO_SKIP.format("modal_linear")}, "walker2d": NARROW},
    "dmm-dc": {"": {**METAMAMBA, **DOUBLE}, "walker2d": NARROW},
    "dmm-dl": {"": {**METAMAMBA, **DOUBLE}, "walker2d": NARROW},
    "dmm26": {
        "": {**METAMAMBA, **DOUBLE},
        "antmaze": {**SINGLE, "model.frozen_shared_mixer": True},  # as its released code does there
    },
    # No code was published for the next two: their settings are the recipe's own and those of `dm`.
    "ds4": {"": {"train.learning_rate": 1e-3}},
    "mambadm": {"": {"model.context": 20, "model.width": 128, "train.learning_rate": 1e-3}},
    "edt": {"": {**HALF, **EDT}, "halfcheetah": {"train.batch_size": 128}},
    "reinformer": {"": {**HALF, "model.width": 256, "model.context": 5, "train.batch_size": 128}},
}
"""Recipe -> settings of its paper: for every task, then for a domain, then for one task; later ones win."""


def locomotion() -> Iterator[Preset]:
    """Every preset, recipe by recipe."""
    published = _published()
    for recipe in PAPERS:
        for task in dict.fromkeys(task for task, _ in published):
            domain = task.split("-")[0]
            # D4RL's names of mazes' files tell more than the task.
            file = f"d4rl:{task.replace('-', '_')}-v2.hdf5" if domain in TARGETS else ""
            settings = _settings(recipe, task)
            numbers = tuple(published.get((task, recipe), ()))
            yield Preset(
                f"{recipe}/{task}", recipe, task, ENVIRONMENTS[domain], f"D4RL {task}-v2", file, settings, numbers
            )


def _settings(recipe: str, task: str) -> dict[str, Any]:
    """Common settings, then those of the recipe: for all tasks, for the domain, for the task."""
    domain = task.split("-")[0]
    base = TARGETS.get(domain)
    targets = MAZE_TARGETS if base is None else tuple(factor * base for factor in (1, 2, 10, 20))
    if recipe == "dm" and base is not None:
        targets = (base / 2, *targets)
    if recipe == "dt" and base is not None:
        targets = (base, base / 2)
    settings = {**COMMON} if recipe in NO_TARGET else {**COMMON, "eval.targets": list(targets)}
    for part in ("", domain, task):
        settings |= PAPERS[recipe].get(part, {})
    if "model.context" in settings:  # all of them recompute the window; the others act as their recipe does
        settings["eval.context"] = settings["model.context"]
    return settings


def _published() -> dict[tuple[str, str], list[Published]]:
    """Printed scores by task and recipe."""
    found: dict[tuple[str, str], list[Published]] = {}
    for task, recipe, table, entry in columns(SCORES):
        score, _, spread = entry.partition("±")
        number = Published(float(score), float(spread) if spread else None, *SOURCES[table])
        found.setdefault((task, recipe), []).append(number)
    return found
