"""`ATARI`: how the recipes become the papers' Atari models, as changes to their `ModelConfig`.

    recipe("dt", **ATARI["dt"])

All have six layers of width 128, tokens through a tanh and without a norm, and the image encoder on pixels divided by
255. In runs of minutes such a model learns nothing from the pictures; `pixels="standardised"` does (docs/log.md).

Departures: one learned table by the step within the episode (`time_embedding`), where the papers that have positions
add a table over the token's place in the window and one over the window's first step: a place in the window means
nothing once the state is carried, and the right-padded window with its own step counter says as much. The head has a
bias. Returns-to-go are divided by a power of ten before their linear map. Windows of Decision MetaMamba are the papers'
20 steps.

Reference: Chen et al. 2021, arXiv 2106.01345; Ota 2024, arXiv 2403.19925; Kim et al. 2024, arXiv 2310.03022; Kim 2024,
arXiv 2408.10517.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ATARI", "ATARI_TRAINING"]

STEM: dict[str, Any] = {
    "width": 128,
    "token_norm": False,
    "token_activation": "tanh",
    "pixels": "unit",
    "reference_extras": False,
    "activation": "gelu",
    "dropout": 0.1,
}
TIMES: dict[str, Any] = {"time_embedding": True, "max_length": 4096}
META: dict[str, Any] = {**STEM, "time_embedding": False, "context": 20}

ATARI: dict[str, dict[str, Any]] = {
    "dt": {**STEM, **TIMES, "pattern": "(attention mlp)*6", "heads": 8, "context": 30},
    "dm": {**STEM, **TIMES, "pattern": "(mamba mlp)*6", "context": 30},
    "dc": {**STEM, **TIMES, "pattern": "(modal_conv mlp)*6", "context": 8},
    "mambadm": {**STEM, **TIMES, "pattern": "(gloma mlp)*6", "context": 30},  # all but the layers as in "dm"
    "dmm-c": {**META, "pattern": "(modal_conv mamba)*6"},
    "dmm-l": {**META, "pattern": "(modal_linear mamba)*6"},
    "dmm-dc": {**META, "pattern": "(modal_conv mamba)*6"},
    "dmm-dl": {**META, "pattern": "(modal_linear mamba)*6"},
}
"""Recipe -> changes to its model."""

RATES: dict[str, Any] = {
    "learning_rate": 6e-4,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "decayed": "matrices",
    "clip_norm": 1.0,
}
BATCHES = {"dt": 128, "dm": 256, "dc": 128, "mambadm": 256, "dmm-c": 64, "dmm-l": 64, "dmm-dc": 64, "dmm-dl": 64}

ATARI_TRAINING: dict[str, dict[str, Any]] = {name: {**RATES, "batch_size": size} for name, size in BATCHES.items()}
"""Recipe -> settings of its training at the papers' protocol: 5 (dt) or 10 passes over 500,000 steps, a cosine to a
tenth. For Pong, `dt`, `dm` and `mambadm` take windows of 50 steps, and `dt` and `dc` 512 of them to a batch."""
