"""The same networks in other people's code, with the weights of ours: what a user would pick instead.

Functions return `None` where the library is not installed; that is told once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.bench.timing import installed
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.nn.heads import masked_mean
from scanrl.nn.mamba import Mamba
from tools.convert_weights import decision_transformer_links, mamba_under_peer_names

__all__ = ["DecisionTransformerPeer", "mambapy_mixer", "transformers_mixer"]


def mambapy_mixer(ours: Mamba, config: ModelConfig) -> nn.Module | None:
    """mambapy's `MambaBlock` (parallel scan in torch), `(B, L, D) -> (B, L, D)`."""
    if not installed("mambapy"):
        return None
    from mambapy.mamba import MambaBlock, MambaConfig

    peer = MambaBlock(MambaConfig(d_model=config.width, n_layers=1, d_state=config.state_size))
    peer.load_state_dict(mamba_under_peer_names(ours.state_dict()))
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
    peer.load_state_dict(mamba_under_peer_names(ours.state_dict()))
    return peer


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
    """Our parameters under their names."""
    weights = dict(ours.named_parameters())
    links = decision_transformer_links(len(ours.stack.mixers) // 2, extras=False)
    found = {link.theirs: weights[link.ours].t() if link.transposed else weights[link.ours] for link in links}
    found["encoder.wpe.weight"] = torch.zeros(3 * ours.config.context, ours.config.width)  # they take its row 0
    return {name: value.detach().clone() for name, value in found.items()}
