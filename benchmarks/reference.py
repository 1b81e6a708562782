"""A training step in the structure of the released code of these models, on the parameters of ours.

Built from descriptions of that code, not copied from it: `mamba_ssm`'s scan without CUDA (coefficients of the whole
sequence, then a loop over steps that slices them), channels before time inside the mixers, one depthwise convolution
over all tokens per place of which each token takes one, dropout of 0.1 on embeddings and MLPs, a gather of the valid
steps before the loss, AdamW as torch makes it by default.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.models.decision import DecisionModel
from scanrl.nn.local import LocalConv
from scanrl.nn.mamba import Mamba
from scanrl.nn.mixer import MLP

__all__ = ["reference_loss"]


def reference_loss(model: DecisionModel, batch: Batch, dropout: float) -> Tensor:
    """The loss of `model` (a stack of Mamba, MLP and modal convolutions, all with a residual) on a batch of windows."""
    x = F.dropout(model.tokens(batch), dropout)
    for mixer, norm, residual in model.stack._layers():
        assert residual == "pre"
        x = x + _mixed(mixer, norm(x), dropout)
    hidden = model.norm(x)[:, model.config.layout.index("s") :: model.config.period]
    predicted = torch.tanh(model.head.linear(hidden))
    size = predicted.shape[2]
    valid = batch.mask.reshape(-1) > 0
    target = model.tokens.scale_actions(batch.actions).reshape(-1, size)[valid]
    return torch.mean((predicted.reshape(-1, size)[valid] - target) ** 2)


def _mixed(mixer: nn.Module, x: Tensor, dropout: float) -> Tensor:
    if isinstance(mixer, Mamba):
        return _mamba(mixer, x)
    if isinstance(mixer, MLP):
        return F.dropout(mixer.down(F.gelu(mixer.up(x))), dropout)
    assert isinstance(mixer, LocalConv)
    return _modal_conv(mixer, x.transpose(1, 2)).transpose(1, 2)


def _modal_conv(conv: LocalConv, x: Tensor) -> Tensor:
    """x (B, D, L)."""
    places, window, width = conv.kernel.shape
    padded = F.pad(x, (window - 1, 0))
    every = [F.conv1d(padded, k.t()[:, None], b, groups=width) for k, b in zip(conv.kernel, conv.bias, strict=True)]
    if places == 1:
        return every[0]
    y = torch.empty_like(x)
    for m in range(places):
        y[:, :, m::places] = every[m][:, :, m::places]
    return y


def _mamba(mamba: Mamba, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    rank, states = mamba.dt_rank, mamba.A_log.shape[1]
    pz = (mamba.in_proj.weight @ x.flatten(0, 1).t()).unflatten(1, (batch, length)).transpose(0, 1)  # (B, 2E, L)
    u, z = pz.chunk(2, 1)
    if isinstance(mamba.inner, LocalConv):
        u = _modal_conv(mamba.inner, u)
    u = F.silu(u)
    dt, B, C = mamba.x_proj(u.transpose(1, 2).flatten(0, 1)).split([rank, states, states], -1)
    dt = (mamba.dt_proj.weight @ dt.t()).unflatten(1, (batch, length)).transpose(0, 1)  # (B, E, L)
    B, C = (t.unflatten(0, (batch, length)).transpose(1, 2).contiguous() for t in (B, C))  # (B, N, L)
    delta = F.softplus(dt + mamba.dt_proj.bias[:, None])
    y = _scan(u, delta, -torch.exp(mamba.A_log), B, C) + mamba.D[:, None] * u
    return mamba.out_proj((y * F.silu(z)).transpose(1, 2))


def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """u, delta (B, E, L), B and C (B, N, L); y (B, E, L)."""
    decay = torch.exp(torch.einsum("bel,en->beln", delta, A))
    written = torch.einsum("bel,bnl,bel->beln", delta, B, u)
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + written[:, :, t]
        ys.append(torch.einsum("ben,bn->be", h, C[:, :, t]))
    return torch.stack(ys, 2)
