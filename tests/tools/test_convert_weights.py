"""Weights of other libraries give the same outputs in our modules, and ours in theirs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from scanrl.checkpoint import load_checkpoint
from scanrl.nn import ModelConfig
from scanrl.nn.mamba import Mamba
from scanrl.nn.mamba2 import Mamba2
from scanrl.policy import Policy
from scanrl.types import DataError
from tests.conftest import BOX, make_batch, make_stats
from tools import convert_weights
from tools.convert_weights import decision_transformer, mamba, mamba_under_peer_names

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def transformer(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()  # of tokens for text, which it has none of
    settings = {"state_dim": 5, "act_dim": 2, "hidden_size": 16, "n_layer": 2, "n_head": 2, "max_ep_len": 30, **changes}
    torch.manual_seed(0)
    model = transformers.DecisionTransformerModel(transformers.DecisionTransformerConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that are not what they start as
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "changes", [{}, {"activation_function": "gelu", "n_inner": 32}, {"activation_function": "swish", "n_head": 1}]
)
@pytest.mark.parametrize("steps", [1, 7])
def test_transformers_decision_transformer_gives_the_same_actions(changes: dict, steps: int) -> None:
    peer, batch = transformer(**changes), make_batch(BOX, 3, steps)
    with torch.no_grad():
        expected = peer(
            states=batch.observations,
            actions=batch.actions,
            rewards=batch.rewards[..., None],
            returns_to_go=batch.returns_to_go[..., None],
            timesteps=batch.timesteps,
        ).action_preds
        found = decision_transformer(peer).actions(batch)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (expected[0, 0] - expected[1, 0]).abs().max() > 0.01


def test_scales_of_a_converted_transformer_are_those_it_is_given() -> None:
    """Observations, returns and actions in raw units, where the user of theirs scaled them."""
    peer, stats, batch = transformer(), make_stats(BOX), make_batch(BOX, 2, 4)
    model = decision_transformer(peer, stats)
    seen = (batch.observations - torch.tensor(stats.observation_mean)) / torch.tensor(stats.observation_std)
    with torch.no_grad():
        expected = peer(
            states=seen,
            actions=model.tokens.scale_actions(batch.actions),
            rewards=batch.rewards[..., None],
            returns_to_go=batch.returns_to_go[..., None] / stats.return_scale,
            timesteps=batch.timesteps,
        ).action_preds
        found = model.tokens.scale_actions(model.actions(batch))
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu_new"}, "activation_function: expected 'relu' or .* got 'gelu_new'"),
        ({"action_tanh": False}, "action_tanh: expected True, got False"),
        ({"n_inner": 24}, "n_inner modulo hidden_size: expected 0, got 8"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon: expected 1e-05, got 1e-06"),
    ],
)
def test_a_transformer_that_is_another_network_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decision_transformer(transformer(**changes))


def test_the_command_writes_a_checkpoint_that_acts(tmp_path, capsys) -> None:
    peer, stats = transformer(), make_stats(BOX)
    peer.save_pretrained(tmp_path / "theirs")
    (tmp_path / "stats.json").write_text(json.dumps(stats.to_json()))
    words = [tmp_path / "theirs", tmp_path / "ours", "--stats", tmp_path / "stats.json", "--context", 8]
    convert_weights.main([str(word) for word in words])
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours" / "checkpoints" / "step-0")
    found = load_checkpoint(tmp_path / "ours")
    assert (found.config.context, found.stats) == (8, stats)
    batch = make_batch(BOX, 2, 4)
    assert torch.equal(found.model().eval().actions(batch), decision_transformer(peer, stats, context=8).actions(batch))
    assert Policy.load(tmp_path / "ours", target_return=10.0).act(np.zeros(5, np.float32)).shape == (2,)


def block(**changes: Any) -> Any:
    mambapy = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    return mambapy.MambaBlock(mambapy.MambaConfig(**{"d_model": 24, "n_layers": 1, "d_state": 5, **changes})).eval()


@pytest.mark.parametrize("changes", [{}, {"d_conv": 3, "expand_factor": 1}, {"d_model": 8}])
@pytest.mark.parametrize("length", [1, 13, 40])
def test_mambapys_block_gives_the_same_outputs(changes: dict, length: int) -> None:
    peer = block(**changes)
    ours, x = mamba(peer), torch.randn(3, length, peer.config.d_model)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], peer(x), **CLOSE)


def test_mambapys_block_steps_as_ours_does() -> None:
    peer = block()
    ours, state = mamba(peer), mamba(peer).initial_state(2)
    cache = (None, torch.zeros(2, peer.config.d_inner, peer.config.d_conv - 1))
    with torch.no_grad():
        for token in torch.randn(6, 2, 24):
            expected, cache = peer.step(token, cache)
            y, state = ours.step(token, state)
            torch.testing.assert_close(y, expected, **CLOSE)


def test_our_mamba_goes_to_mambapy_and_back() -> None:
    torch.manual_seed(0)
    ours, peer = Mamba(ModelConfig(width=24, state_size=5)), block()
    peer.load_state_dict(mamba_under_peer_names(ours.state_dict()))
    for name, tensor in mamba(peer).state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


def test_a_block_that_is_another_network_is_refused() -> None:
    with pytest.raises(DataError, match="inner_layernorms: expected False, got True"):
        mamba(block(inner_layernorms=True))


@pytest.mark.parametrize("length", [1, 15, 70])
def test_our_mamba2_computes_what_transformers_does(length: int) -> None:
    """The same formulas, order of channels and place of the norm as in other people's Mamba-2."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()  # that it is slow without CUDA kernels
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    settings = transformers.Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, state_size=5, expand=2, n_groups=1, chunk_size=32
    )
    torch.manual_seed(0)
    peer, ours = Mamba2Mixer(settings, layer_idx=0), Mamba2(ModelConfig(width=16, state_size=5, head_size=8))
    tensors = ours.state_dict()
    renamed = {"conv1d.weight": tensors.pop("conv.kernel")[0].t()[:, None], "conv1d.bias": tensors.pop("conv.bias")[0]}
    tensors["norm.weight"] = tensors.pop("norm") + 0.1
    with torch.no_grad():
        ours.norm.add_(0.1)
    peer.load_state_dict(tensors | renamed)
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], peer(x), **CLOSE)
