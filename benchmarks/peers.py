"""The same networks in other people's code, with the weights of ours: what a user would pick instead.

Functions return `None` where the library is not installed; that is told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.bench.timing import installed
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.nn.heads import masked_mean
from scanrl.nn.mamba import Mamba

__all__ = ["DecisionTransformerPeer", "mambapy_mixer", "renamed_as_peers", "transformers_mixer"]


def mambapy_mixer(ours: Mamba, config: ModelConfig) -> nn.Module | None:
    """mambapy's `MambaBlock` (parallel scan in torch), `(B, L, D) -> (B, L, D)`."""
    if not installed("mambapy"):
        return None
    from mambapy.mamba import MambaBlock, MambaConfig

    peer = MambaBlock(MambaConfig(d_model=config.width, n_layers=1, d_state=config.state_size))
    peer.load_state_dict(renamed_as_peers(ours.state_dict()))
    return peer


def transformers_mixer(ours: Mamba, config: ModelConfig) -> nn.Module | None:
    """transformers' `MambaMixer` as it runs on the CPU: a loop over tokens in torch."""
    if not installed("transformers"):
        return None
    from transformers import MambaConfig, logging
    from transformers.models.mamba.modeling_mamba import MambaMixer

    logging.set_verbosity_error()  # that it is slow without its CUDA kernels is what is being measured
    settings = MambaConfig(
        hidden_size=config.width,
        state_size=config.state_size,
        expand=config.expand,
        num_hidden_layers=1,
        time_step_rank=ours.dt_rank,
        use_mambapy=False,
    )
    peer = MambaMixer(settings, layer_idx=0)
    peer.load_state_dict(renamed_as_peers(ours.state_dict()))
    return peer


def renamed_as_peers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our Mamba's parameters, or their gradients, under the names and shapes of the authors' code: the peers' too."""
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("inner.")}
    kernel, bias = tensors["inner.kernel"], tensors["inner.bias"]  # (1, w, E), (1, E): one place, Mamba's own form
    return found | {"conv1d.weight": kernel[0].t()[:, None], "conv1d.bias": bias[0]}


class DecisionTransformerPeer:
    """transformers' `DecisionTransformerModel` with the weights of our `dt`, on our batches.

    Ours must have unit statistics (as `hopper_model`): only returns-to-go are scaled here, as users of theirs do.
    """

    def __init__(self, ours: DecisionModel, attention: Literal["sdpa", "eager"]) -> None:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel, logging

        logging.set_verbosity_error()  # of tokens for text, which it has none of
        config = ours.config
        settings = DecisionTransformerConfig(
            state_dim=ours.spec.observation_size,
            act_dim=ours.spec.action_size,
            hidden_size=config.width,
            max_ep_len=config.max_length,
            n_layer=len(ours.stack.mixers) // 2,
            n_head=config.heads,
            n_inner=config.mlp_ratio * config.width,
            activation_function=config.activation,
            n_positions=3 * config.context,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            attn_implementation=attention,
        )
        self.model = DecisionTransformerModel(settings)
        self.model.load_state_dict(_decision_transformer_weights(ours), strict=False)
        self.return_scale = ours.stats.return_scale

    def actions(self, batch: Batch) -> Tensor:
        """Predicted actions `(B, T, A)` in [-1, 1]."""
        return self.model(
            states=batch.observations,
            actions=batch.actions,
            rewards=batch.rewards[..., None],
            returns_to_go=batch.returns_to_go[..., None] / self.return_scale,
            timesteps=batch.timesteps,
            attention_mask=batch.mask.long(),
            return_dict=True,
        ).action_preds

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error over valid steps."""
        return masked_mean((self.actions(batch) - batch.actions) ** 2, batch.mask)


def _decision_transformer_weights(ours: DecisionModel) -> dict[str, Tensor]:
    """Our parameters under their names; their linear maps inside the blocks are stored transposed."""
    modules: dict[str, nn.Module] = {
        "embed_return": ours.tokens.embeddings["return_to_go"],
        "embed_state": ours.tokens.embeddings["observation"],
        "embed_action": ours.tokens.embeddings["action"],
        "embed_ln": ours.tokens.norm,
        "encoder.ln_f": ours.norm,
        "predict_action.0": ours.head.linear,
    }
    assert ours.tokens.time is not None
    weights = {"embed_timestep.weight": ours.tokens.time.weight}
    weights["encoder.wpe.weight"] = torch.zeros(3 * ours.config.context, ours.config.width)  # they take its row 0
    for index, (mixer, norm) in enumerate(zip(ours.stack.mixers, ours.stack.norms, strict=True)):
        block, second = f"encoder.h.{index // 2}", index % 2
        modules[f"{block}.ln_{1 + second}"] = norm
        names = {"mlp.c_fc": "up", "mlp.c_proj": "down"} if second else {"attn.c_attn": "qkv", "attn.c_proj": "out"}
        for theirs, own in names.items():
            linear = mixer.get_submodule(own)
            weights[f"{block}.{theirs}.weight"] = linear.get_parameter("weight").t()
            weights[f"{block}.{theirs}.bias"] = linear.get_parameter("bias")
    for name, module in modules.items():
        weights |= {f"{name}.{key}": value for key, value in module.named_parameters()}
    return {name: value.detach().clone() for name, value in weights.items()}
