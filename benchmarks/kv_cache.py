"""A transformer that acts on a key/value cache in torch: what a user would write, and write well.

Keys and values stand in a ring of memory that is overwritten (in torch, our own attention makes a new cache for each
chunk, as a mixer's state is a value; in the native step it is such a ring), and all tokens that came to be known since
the last action are one chunk. Otherwise it computes exactly what the policy computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scanrl.models.decision import DecisionModel
from scanrl.nn.attention import Attention
from scanrl.nn.mixer import MLP

__all__ = ["RingTransformer"]


class RingTransformer:
    """One stream of a pre-norm stack of attention and MLPs. Token `i` sees tokens `i-W+1 .. i`.

    Args:
        model: its layout must end with `a`, or be `s` alone.
        filled: begin with that many tokens of random memory, to time a full window at once.
    """

    def __init__(self, model: DecisionModel, filled: int = 0) -> None:
        self.model, self.layout = model.eval(), model.config.layout
        self.layers = list(zip(model.stack.mixers, model.stack.norms, strict=True))
        attentions = [mixer for mixer, _ in self.layers if isinstance(mixer, Attention)]
        self.window = attentions[0].window
        self.slots = self.window + len(self.layout) - 1  # the first token of a chunk still needs its whole window
        g = torch.Generator().manual_seed(0)
        shape = (2, 1, attentions[0].heads, self.slots, model.config.width // attentions[0].heads)
        self.memory = {mixer: torch.randn(shape, generator=g) for mixer in attentions}
        self.token_at = torch.full((self.slots,), -self.slots - self.window)  # far behind every window
        self.token_at[torch.arange(filled) % self.slots] = torch.arange(filled)
        self.tokens, self.time = filled, torch.tensor([filled // len(self.layout)])
        self.action: Tensor | None = None

    def act(self, observation: Tensor, return_to_go: Tensor) -> Tensor:
        """The action `(1, A)` for an observation `(1, *O)`, asking for a return `(1,)`, all in raw units."""
        embed, values = self.model.tokens.embed, {"R": return_to_go, "s": observation}
        chunk = [embed(letter, values[letter], self.time) for letter in self.layout if letter in values]
        if "a" in self.layout and self.action is not None:
            chunk.insert(0, embed("a", self.action, self.time - 1))
        x = torch.stack(chunk, 1)  # (1, n, D)
        now = torch.arange(self.tokens, self.tokens + x.shape[1])
        slots = now % self.slots
        self.token_at[slots] = now
        used = min(self.tokens + len(now), self.slots)
        behind = now[:, None] - self.token_at[:used]
        seen = (behind >= 0) & (behind < self.window)  # (n, used)
        for mixer, norm in self.layers:
            y = norm(x)
            x = x + (self._attend(mixer, y, slots, seen) if isinstance(mixer, Attention) else _mlp(mixer, y))
        self.tokens, self.time = self.tokens + len(now), self.time + 1
        self.action = self.model.decide(x[:, -1])
        return self.action

    def _attend(self, mixer: Attention, x: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        q, k, v = mixer.qkv(x).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4)
        keys, values = self.memory[mixer]
        keys[:, :, slots], values[:, :, slots] = k, v
        used = seen.shape[1]
        y = F.scaled_dot_product_attention(q, keys[:, :, :used], values[:, :, :used], seen)
        return mixer.out(y.transpose(1, 2).flatten(2))


def _mlp(mixer: torch.nn.Module, x: Tensor) -> Tensor:
    assert isinstance(mixer, MLP)
    return mixer(x)[0]
