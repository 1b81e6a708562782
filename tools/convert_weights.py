"""Weights of other libraries in our modules: transformers' `DecisionTransformerModel` and mambapy's `MambaBlock`.

    pip install transformers
    python tools/convert_weights.py FOLDER OUT [--stats STATS.json] [--env Hopper-v4] [--context 20]

turns what `save_pretrained` wrote in FOLDER into a checkpoint that `scanrl eval OUT` and `scanrl.Policy.load` take.
Those models see observations and returns that their user has scaled; `--stats` is a `stats.json` as in our checkpoints
with the figures of that. Without it the policy expects observations and returns scaled already.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scanrl.checkpoint import save_checkpoint
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn import ModelConfig
from scanrl.nn.mamba import Mamba
from scanrl.stats import Stats
from scanrl.types import DataError, Spec

if TYPE_CHECKING:
    from mambapy.mamba import MambaBlock
    from transformers import DecisionTransformerModel

__all__ = [
    "Link",
    "decision_transformer",
    "decision_transformer_links",
    "mamba",
    "mamba_under_peer_names",
]


class Link(NamedTuple):
    """One tensor under both names; GPT-2's linear maps are stored transposed."""

    ours: str
    theirs: str
    transposed: bool = False


def decision_transformer_links(layers: int, *, extras: bool) -> list[Link]:
    """All parameters of our `dt` with `layers` of attention and MLP; `extras` are its idle parts."""
    modules = {
        "tokens.embeddings.return_to_go": "embed_return",
        "tokens.embeddings.observation": "embed_state",
        "tokens.embeddings.action": "embed_action",
        "tokens.norm": "embed_ln",
        "norm": "encoder.ln_f",
        "head.linear": "predict_action.0",
    }
    links = [Link("tokens.time.weight", "embed_timestep.weight")]
    if extras:
        modules |= {f"extras.{name}": name for name in ("predict_state", "predict_return")}
        links.append(Link("extras.table.weight", "encoder.wte.weight"))
    for layer in range(layers):
        attention, mlp, block = f"stack.mixers.{2 * layer}", f"stack.mixers.{2 * layer + 1}", f"encoder.h.{layer}"
        modules |= {f"stack.norms.{2 * layer + i}": f"{block}.ln_{1 + i}" for i in (0, 1)}
        maps = {f"{attention}.qkv": "attn.c_attn", f"{attention}.out": "attn.c_proj"}
        maps |= {f"{mlp}.up": "mlp.c_fc", f"{mlp}.down": "mlp.c_proj"}
        for ours, theirs in maps.items():
            links.append(Link(f"{ours}.weight", f"{block}.{theirs}.weight", transposed=True))
            links.append(Link(f"{ours}.bias", f"{block}.{theirs}.bias"))
    return links + [Link(f"{a}.{kind}", f"{b}.{kind}") for a, b in modules.items() for kind in ("weight", "bias")]


def decision_transformer(
    peer: DecisionTransformerModel, stats: Stats | None = None, env: str | None = None, context: int = 20
) -> DecisionModel:
    """Our `dt` with the weights of transformers' model; actions equal its `action_preds`.

    Args:
        peer: the model.
        stats: how the user of the peer scaled observations and returns, and the bounds of the actions; by default
            nothing is scaled, and actions lie in [-1, 1].
        env: Gymnasium id that the policy acts in.
        context: steps of its training window, which transformers does not store.

    Raises:
        DataError: a setting of the peer that our module does not have.
    """
    theirs = peer.config
    _expect("action_tanh", theirs.action_tanh, True)
    _expect("layer_norm_epsilon", theirs.layer_norm_epsilon, 1e-5)
    _expect("scale_attn_weights", theirs.scale_attn_weights, True)
    _expect("scale_attn_by_inverse_layer_idx", theirs.scale_attn_by_inverse_layer_idx, False)
    activations = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}
    _expect("activation_function", theirs.activation_function, *activations)
    inner = theirs.n_inner or 4 * theirs.hidden_size
    _expect("n_inner modulo hidden_size", inner % theirs.hidden_size, 0)
    config = recipe(
        "dt",
        pattern=f"(attention mlp)*{theirs.n_layer}",
        width=theirs.hidden_size,
        heads=theirs.n_head,
        mlp_ratio=inner // theirs.hidden_size,
        activation=activations[theirs.activation_function],
        max_length=theirs.max_ep_len,
        context=context,
    ).model
    bounds = ((-1.0,) * theirs.act_dim, (1.0,) * theirs.act_dim)
    if stats is not None and stats.action_low is not None and stats.action_high is not None:
        bounds = tuple(map(float, stats.action_low)), tuple(map(float, stats.action_high))
    spec = Spec((theirs.state_dim,), "continuous", theirs.act_dim, *bounds, env_id=env)
    model = DecisionModel(config, spec, stats or _unscaled(spec, theirs.max_ep_len))
    weights = peer.state_dict()
    found = {
        link.ours: weights[link.theirs].t() if link.transposed else weights[link.theirs]
        for link in decision_transformer_links(theirs.n_layer, extras=True)
    }
    # Behind the norm of the tokens theirs adds row 0 of GPT-2's position table to all of them.
    found["tokens.norm.bias"] = found["tokens.norm.bias"] + weights["encoder.wpe.weight"][0]
    model.load_state_dict(found)
    return model.eval()


def mamba(peer: MambaBlock) -> Mamba:
    """Our `Mamba` with the weights of mambapy's block; outputs and steps equal its own.

    Raises:
        DataError: a setting of the peer that our module does not have.
    """
    theirs = peer.config
    for name, wanted in {"bias": False, "conv_bias": True, "inner_layernorms": False}.items():
        _expect(name, getattr(theirs, name), wanted)
    _expect("dt_rank", theirs.dt_rank, -(-theirs.d_model // 16))
    own = theirs.d_conv == 4
    config = ModelConfig(
        width=theirs.d_model,
        expand=theirs.expand_factor,
        state_size=theirs.d_state,
        inner_mixer="conv4" if own else "conv",
        window=theirs.d_conv,
    )
    ours = Mamba(config)
    weights = {name: tensor for name, tensor in peer.state_dict().items() if not name.startswith("conv1d.")}
    weights["inner.kernel"] = peer.conv1d.weight.detach()[:, 0].t()[None]
    assert peer.conv1d.bias is not None
    weights["inner.bias"] = peer.conv1d.bias.detach()[None]
    ours.load_state_dict(weights)
    return ours.eval()


def mamba_under_peer_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our Mamba's parameters, or their gradients, under the names and shapes of the authors' code: mambapy's too."""
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("inner.")}
    kernel, bias = tensors["inner.kernel"], tensors["inner.bias"]  # (1, w, E), (1, E): one place, Mamba's own form
    return found | {"conv1d.weight": kernel[0].t()[:, None], "conv1d.bias": bias[0]}


def _expect(name: str, found: Any, *expected: Any) -> None:
    if found not in expected:
        raise DataError(f"config: {name}: expected {' or '.join(map(repr, expected))}, got {found!r}")


def _unscaled(spec: Spec, longest: int) -> Stats:
    zeros = np.zeros(spec.observation_shape, np.float32)
    low, high = np.array(spec.action_low, np.float32), np.array(spec.action_high, np.float32)
    return Stats(zeros, zeros + 1, 1.0, low, high, longest, 1.0, 1.0)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what transformers' save_pretrained wrote")
    parser.add_argument("out", type=Path, help="folder to write the checkpoint to")
    parser.add_argument("--stats", type=Path, help="stats.json with the scales that the model was trained with")
    parser.add_argument("--env", help="Gymnasium id that the policy acts in")
    parser.add_argument("--context", type=int, default=20, help="steps of its training window")
    chosen = parser.parse_args(words)
    from transformers import DecisionTransformerModel

    peer: nn.Module = DecisionTransformerModel.from_pretrained(chosen.folder, local_files_only=True)
    stats = Stats.from_json(json.loads(chosen.stats.read_text(encoding="utf-8"))) if chosen.stats else None
    with torch.no_grad():
        model = decision_transformer(peer, stats, chosen.env, chosen.context)  # type: ignore[arg-type]
    about = {"recipe": "dt", "data": str(chosen.folder), "env": chosen.env}
    print(save_checkpoint(chosen.out / "checkpoints", 0, model, about, {}, {}))


if __name__ == "__main__":
    main()
