"""Networks: tokens, mixers, heads. `MIXERS` and `HEADS` are the families; their keys are the names users write."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scanrl.nn.attention import Attention
from scanrl.nn.config import ModelConfig
from scanrl.nn.entropy import EntropyGaussianHead
from scanrl.nn.gloma import GLoMa
from scanrl.nn.heads import CategoricalHead, GaussianHead, Head, PartsHead, RegressionHead
from scanrl.nn.local import LocalConv, LocalLinear
from scanrl.nn.mamba import Mamba
from scanrl.nn.mamba2 import Mamba2
from scanrl.nn.mixer import MLP, Mixer, Stack, State, map_state, replace_rows
from scanrl.nn.returns import ReturnHead
from scanrl.nn.s4d import S4D
from scanrl.nn.tokens import Tokens

__all__ = [
    "HEADS",
    "MIXERS",
    "Head",
    "Mixer",
    "ModelConfig",
    "PartsHead",
    "ReturnHead",
    "Stack",
    "State",
    "Tokens",
    "map_state",
    "replace_rows",
]

MIXERS: dict[str, Callable[[ModelConfig], Mixer]] = {
    "attention": Attention,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "s4d": S4D,
    "gloma": GLoMa,
    "gloma_shifted": partial(GLoMa, shifted=True),
    "mlp": MLP,
    "conv": partial(LocalConv, split=False),
    "modal_conv": LocalConv,
    "dense": partial(LocalLinear, split=False),
    "modal_linear": LocalLinear,
}

HEADS: dict[str, type[Head]] = {
    "regression": RegressionHead,
    "categorical": CategoricalHead,
    "gaussian": GaussianHead,
    "entropy_gaussian": EntropyGaussianHead,
}
