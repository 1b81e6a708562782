"""`build_model`: the network that a config describes, of one of the three classes there are."""

from __future__ import annotations

from scanrl.kernels.native_step import Code
from scanrl.models.decision import DecisionModel
from scanrl.models.hybrid import HybridModel
from scanrl.models.hybrid_step import HybridCode
from scanrl.models.pretrained import PretrainedModel
from scanrl.nn import ModelConfig
from scanrl.stats import Stats
from scanrl.types import Spec

__all__ = ["Model", "ModelCode", "build_model"]

Model = DecisionModel | HybridModel | PretrainedModel
"""What is trained, saved and acted with."""

ModelCode = Code | HybridCode
"""Its step for the C kernels: what `lower` gives."""


def build_model(config: ModelConfig, spec: Spec, stats: Stats, seed: int = 0) -> Model:
    """A fresh network: with sub-goals where `config.subgoal_steps` is above 0, for queries where `config.query` is set.

    Raises:
        DataError: the config makes no network for this kind of observations and actions.
    """
    if config.query:
        return PretrainedModel(config, spec, stats, seed)
    return (HybridModel if config.subgoal_steps else DecisionModel)(config, spec, stats, seed)
