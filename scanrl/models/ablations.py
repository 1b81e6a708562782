"""`ABLATIONS`: variants of the recipes, as changes to their `ModelConfig`: those that the papers compare with their
models, and for Decision Mamba-Hybrid the choices that its paper leaves open.

    recipe("dmm-dc", **ABLATIONS["dmm-dc"]["no-input-mixer"])

Where a paper gives numbers for a row they are in `docs/models.md`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ABLATIONS"]

Changes = dict[str, Any]

_MAMBA: dict[str, Changes] = {
    # What GPT-2's initialisation does to Mamba's in released code, against Mamba's own (docs/log.md).
    "dt-reset": {"dt_init": "gpt2_reset"},
    # The table of nonlinearities says SiLU; which of them its GELU rows change is not told. Here: what enters the scan.
    "gelu": {"inner_activation": "gelu"},
}


def _single(mixer: str, plain: str) -> dict[str, Changes]:
    return {
        "no-modality-split": {"pattern": f"({plain} mamba)*3"},
        "residual-post": {"pattern": f"({mixer} mamba:post)*3"},
        "residual-none": {"pattern": f"({mixer} mamba:none)*3"},  # the released code of the single forms
        "width-64": {"width": 64},  # what the text says of all forms; the published counts are those of 128
        **_MAMBA,
    }


def _double(mixer: str, plain: str) -> dict[str, Changes]:
    return {
        "no-input-mixer": {"pattern": "mamba*3"},
        "no-modality-split": {"pattern": f"({plain} mamba)*3", "inner_mixer": plain},
        "residual-post": {"pattern": f"({mixer} mamba:post)*3"},  # the paper's text
        "residual-none": {"pattern": f"({mixer} mamba:none)*3"},
        "width-128": {"width": 128},
        "own-convolution": {"inner_mixer": "conv4"},  # the text again: the double forms "retain" Mamba's own mixer
        **_MAMBA,
    }


# What the paper describes; the others differ from it in one thing each.
_HYBRID: Changes = {"planner_reads": "sums", "subgoal_targets": "all"}
_OF_HYBRID: dict[str, Changes] = {
    "paper": {},
    "no-subgoals": {"planner": "none"},
    "no-valuable": {"subgoal_targets": "none"},
    "rewarded": {"subgoal_targets": "rewarded"},
    "planner-actions": {"planner_reads": "actions"},
    "planner-steps": {"planner_reads": "steps"},
    "planner-separate": {"planner_tokens": "separate"},
    "separate": {"merged": False},  # the paper: one token for each of sub-goal, state, action, reward
    "prefix": {"merged": False, "subgoal_prefix": True},
    "drawn": {"subgoal_draw": "always"},
    "mean": {"subgoal_draw": "never"},
    "adaptive": {"subgoal_choices": (5, 10, 20)},
}

ABLATIONS: dict[str, dict[str, Changes]] = {
    # Attention mixes tokens, a state space without an inner convolution takes the MLP's place.
    "dt": {"attention-ssm": {"pattern": "(attention mamba)*3", "inner_mixer": "none"}},
    "dm": {"dt-reset": _MAMBA["dt-reset"]},
    "dmm-c": _single("modal_conv", "conv"),
    "dmm-l": _single("modal_linear", "dense"),
    "dmm-dc": _double("modal_conv", "conv"),
    "dmm-dl": _double("modal_linear", "dense"),
    "dmm26": {
        "frozen-shared-mixer": {"frozen_shared_mixer": True, "width": 128},  # AntMaze and Kitchen as released
        "mamba2": {"pattern": "(dense mamba2)*3", "head_size": 16},
        "no-input-mixer": {"pattern": "mamba*3"},
        **_MAMBA,
    },
    "ds4": {"s4d-real": {"s4d_init": "real"}},
    "mambadm": {
        "global": {"gloma_branch": "global"},
        "local": {"gloma_branch": "local"},
        "gate": {"gloma_fusion": "gate"},
        "concat": {"gloma_fusion": "concat"},
        "shared": {"gloma_share": True},
        "sliding": {"gloma_windows": "sliding"},
        "shifted": {"pattern": "gloma mlp gloma_shifted mlp gloma mlp"},
        "window-2": {"gloma_steps": 2},
        "window-10": {"gloma_steps": 10},
        "dt-reset": _MAMBA["dt-reset"],
    },
    "dmh": {name: {**_HYBRID, **change} for name, change in _OF_HYBRID.items()},
}
"""Recipe -> name of the variant -> changes to its model."""
