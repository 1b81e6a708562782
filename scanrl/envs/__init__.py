"""Environments: our own tasks, and what is needed to make and score anybody's (`make`, `reference_scores`)."""

from __future__ import annotations

__all__ = ["ENVS"]

ENVS: dict[str, str] = {}
"""Our own environments: Gymnasium id -> `module:Class`. A new one is one file and one line here."""
