"""`Tokens`: from raw observations, actions, rewards and returns-to-go to token embeddings. All scaling happens here.

Symbols: `B` batch, `T` steps, `M` tokens per step, `D` width, `O`/`A` observation/action shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from scanrl.batch import Batch
from scanrl.nn.config import ModelConfig
from scanrl.nn.encoders import ENCODERS, stacked_images, stacked_shape
from scanrl.nn.program import ALL, GOING, LAST, NoNativeStep, Program, Register, at
from scanrl.stats import Stats
from scanrl.types import ActionPart, Spec

__all__ = ["PartsEmbedding", "Tokens"]


class Tokens(nn.Module):
    """One linear map (or table, or image encoder) per letter of the layout, a LayerNorm, dropout.

    With `merged` a step is one token: the embeddings of its head (up to where the action is read) and of the tail of
    the step before (what follows) added up, which is one linear map of both side by side, with a mark where an episode
    begins. The first step of a window has no tail.

    Observations are standardised (images likewise, or divided by 255), returns-to-go and rewards divided by their
    scales, continuous actions mapped from their bounds to [-1, 1]. The statistics are buffers, moved with the module
    but saved as `stats.json`.

    Reference: Chen et al. 2021 (Decision Transformer), arXiv 2106.01345.
    """

    def __init__(self, config: ModelConfig, spec: Spec, stats: Stats) -> None:
        super().__init__()
        self.layout, self.max_length, self.spec = config.layout, config.max_length, spec
        self.head = config.head_letters
        width = self.width = config.width
        # ModuleDict keys may not differ by case alone on every file system that stores them; spell them out.
        self.embeddings = nn.ModuleDict({_WORDS[letter]: _embedding(letter, config, spec) for letter in config.layout})
        self.tanh = config.token_activation == "tanh"
        if self.tanh:
            for table in (m for m in self.embeddings.modules() if isinstance(m, nn.Embedding)):
                nn.init.normal_(table.weight, std=TABLE_STD)  # torch's 1 would start in the flat part of the tanh
        self.begins = nn.Embedding(1, width) if config.merged else None
        self.time = nn.Embedding(config.max_length, width) if config.time_embedding else None
        if self.time is not None and not config.token_norm:
            nn.init.zeros_(self.time.weight)  # as in the papers' Atari models: torch's 1 would drown tokens of 0.02
        self.norm = nn.LayerNorm(width) if config.token_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.return_scale, self.reward_scale = stats.return_scale, stats.reward_scale
        scales = _buffers(stats) | (_picture_buffers(config, spec, stats) if spec.is_image else {})
        for name, values in scales.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    observation_mean: Tensor
    observation_std: Tensor
    action_centre: Tensor
    action_half: Tensor

    def forward(self, batch: Batch, tail: Tensor | None = None) -> Tensor:
        """Tokens `(B, T*M, D)` of a batch of windows, in the order of the layout.

        Merged ones go on from `tail` `(B, D)`, see `last_tail`.
        """
        columns = {"R": batch.returns_to_go, "s": batch.observations, "a": batch.actions, "r": batch.rewards}
        tokens = [self._raw(letter, columns[letter], batch.timesteps) for letter in self.layout]
        if self.begins is not None:
            heads, tails = sum(tokens[: self.head]), sum(tokens[self.head :], torch.zeros_like(tokens[0]))
            first = torch.zeros_like(tails[:, :1]) if tail is None else tail[:, None]
            return self.merge(heads + torch.cat([first, tails[:, :-1]], 1), batch.timesteps)
        return self.dropout(self.norm(torch.stack(tokens, 2).flatten(1, 2)))

    def last_tail(self, batch: Batch) -> Tensor:
        """What the last step of a batch adds to the merged token of the step behind it, `(B, D)`."""
        columns = {"R": batch.returns_to_go, "a": batch.actions, "r": batch.rewards}
        last = [(letter, columns[letter][:, -1]) for letter in self.layout[self.head :]]
        return self.summed(last, batch.timesteps[:, -1])

    def summed(self, tokens: Sequence[tuple[str, Tensor]], timesteps: Tensor) -> Tensor:
        """The part of merged tokens `(..., D)` that these letters make, from raw values at `timesteps` `(...)`."""
        nothing = self.observation_std.new_zeros(*timesteps.shape, self.width)
        return sum((self._raw(letter, values, timesteps) for letter, values in tokens), nothing)

    def merge(self, total: Tensor, timesteps: Tensor) -> Tensor:
        """Merged tokens `(..., D)` of steps at `timesteps` `(...)` from the sums of their parts; 0 gets the mark."""
        assert self.begins is not None
        return self.dropout(self.norm(total + self.begins.weight[0] * (timesteps == 0)[..., None]))

    def embed(self, letter: str, values: Tensor, timesteps: Tensor) -> Tensor:
        """One token `(B, D)` for raw `values` `(B, ...)` of a letter at `timesteps` `(B,)`, as `forward` makes it."""
        return self.dropout(self.norm(self._raw(letter, values, timesteps)))

    def scale_observations(self, observations: Tensor) -> Tensor:
        """Raw observations `(B, T, *O)` standardised, entries along one axis: `(B, T, O)`."""
        return (observations.reshape(*observations.shape[:2], -1) - self.observation_mean) / self.observation_std

    def scale_actions(self, actions: Tensor) -> Tensor:
        """Environment units to the head's: [-1, 1] for continuous entries, choices unchanged."""
        if self.spec.action_dtype is np.int64:
            return actions
        return (actions - self.action_centre) / self.action_half

    def unscale_actions(self, actions: Tensor) -> Tensor:
        """The inverse of `scale_actions`."""
        if self.spec.action_dtype is np.int64:
            return actions
        return actions * self.action_half + self.action_centre

    def lower(self, program: Program, start: int = 0) -> Register:
        """Appends `embed` for all tokens of a step to the program, or `merge` for the one that there is.

        Args:
            program: what is appended to.
            start: place of the first token, where others stand before it.

        Raises:
            NoNativeStep: there is an image or an action of several parts, or a token is without its norm.
        """
        if self.spec.is_image:
            raise NoNativeStep("images have no native step")
        if self.tanh or not isinstance(self.norm, nn.LayerNorm):
            raise NoNativeStep("tokens without a norm, or with a tanh, have no native step")
        x = program.register(self.width)
        with program.temporary():
            token = program.register(x.size)
            if self.begins is not None:
                self._lower_sum(program, self.begins.weight, token)
            else:
                for place, letter in enumerate(self.layout, start):
                    self.lower_raw(program, letter, token, at(place))
                if self.time is not None:
                    program.add(program.table("time", self.time.weight, ALL), token, ALL)
            program.copy(program.norm(token, self.norm, ALL), x, ALL)
        return x

    def lower_unscale(self, program: Program, actions: Register) -> None:
        """Appends `unscale_actions` of continuous actions to the program, in place."""
        program.affine(actions, self.action_half, self.action_centre, LAST)

    def _lower_sum(self, program: Program, mark: Tensor, token: Register) -> None:
        """The parts of a merged token: the mark where an episode begins, the head, and the last step's tail."""
        program.table("time", torch.cat([mark, torch.zeros_like(mark)]), ALL, into=token)
        with program.temporary():
            part = program.register(token.size)
            for letter in self.layout:
                rows = ALL if letter in self.layout[: self.head] else GOING
                self.lower_raw(program, letter, part, rows)
                program.add(part, token, rows)
                if self.time is not None:  # every letter brings the time of its own step
                    source = "time" if rows == ALL else "last time"
                    program.table(source, self.time.weight, rows, into=part)
                    program.add(part, token, rows)

    def lower_raw(self, program: Program, letter: str, token: Register, rows: int) -> None:
        """Appends a letter's part of a token, without norm and time, to the program."""
        embedding = self.embeddings[_WORDS[letter]]
        if isinstance(embedding, PartsEmbedding):
            raise NoNativeStep("actions of several parts have no native step")
        if isinstance(embedding, nn.Embedding):
            program.table("action", embedding.weight, rows, into=token)
            return
        one = torch.tensor([self.reward_scale if letter == "r" else self.return_scale])
        shift, scale = {
            "s": (self.observation_mean, self.observation_std),
            "a": (self.action_centre, self.action_half),
        }.get(letter, (torch.zeros(1), one))
        with program.temporary():
            values = program.read(letter, len(shift), shift.numpy(), scale.numpy(), rows)
            linear = cast(nn.Linear, embedding)
            program.linear(values, linear.weight, linear.bias, rows, into=token)

    def _raw(self, letter: str, values: Tensor, timesteps: Tensor) -> Tensor:
        lead = timesteps.shape
        match letter:
            case "s" if self.spec.is_image:
                # Bytes until here: a batch travels to its device at a quarter of the size of real numbers.
                images = stacked_images(values, lead, self.spec).to(self.observation_std.dtype)
                values = (images - self.observation_mean) / self.observation_std
            case "s":
                values = (values.reshape(*lead, -1) - self.observation_mean) / self.observation_std
            case "a":
                values = self.scale_actions(values)
            case _:
                values = (values / (self.reward_scale if letter == "r" else self.return_scale))[..., None]
        token = self.embeddings[_WORDS[letter]](values)
        if letter == "s" and self.spec.is_image:
            token = token.unflatten(0, lead)
        if self.tanh:
            token = torch.tanh(token)
        if self.time is not None:
            token = token + self.time(timesteps.clamp(max=self.max_length - 1))
        return token


class PartsEmbedding(nn.Module):
    """An action of several parts as one token: a table for every choice, a linear map for real entries, added."""

    def __init__(self, parts: Sequence[ActionPart], width: int) -> None:
        super().__init__()
        embeddings: list[nn.Module] = []
        self._entries: list[slice | int] = []
        begin = 0
        for part in parts:
            if part.choices:
                embeddings += [nn.Embedding(size, width) for size in part.choices]
                self._entries += range(begin, begin + part.size)
            else:
                embeddings.append(nn.Linear(part.size, width))
                self._entries.append(slice(begin, begin + part.size))
            begin += part.size
        self.embeddings = nn.ModuleList(embeddings)

    def forward(self, actions: Tensor) -> Tensor:
        """`(..., D)` for scaled actions `(..., A)`."""
        tokens = [
            embedding(actions[..., entry].long() if isinstance(entry, int) else actions[..., entry])
            for embedding, entry in zip(self.embeddings, self._entries, strict=True)
        ]
        return torch.stack(tokens).sum(0)


TABLE_STD = 0.02  # of the released Atari models


def _embedding(letter: str, config: ModelConfig, spec: Spec) -> nn.Module:
    width = config.width
    if letter == "s" and spec.is_image:
        return ENCODERS[config.encoder](stacked_shape(spec), width)
    if letter == "a" and spec.action_parts:
        return PartsEmbedding(spec.action_parts, width)
    if letter == "a" and spec.action_kind == "discrete":
        return nn.Embedding(spec.action_size, width)
    return nn.Linear({"s": spec.observation_size, "a": spec.action_size}.get(letter, 1), width)


_WORDS = {"R": "return_to_go", "s": "observation", "a": "action", "r": "reward"}


def _buffers(stats: Stats) -> dict[str, np.ndarray]:
    low, high = np.zeros(1), np.zeros(1)
    if stats.action_low is not None and stats.action_high is not None:
        low, high = stats.action_low.astype(np.float64), stats.action_high.astype(np.float64)
    return {
        "observation_mean": stats.observation_mean.ravel(),
        "observation_std": stats.observation_std.ravel(),
        "action_centre": (high + low) / 2,
        "action_half": np.where(high > low, (high - low) / 2, 1.0),  # an entry that never moves stays as it is
    }


PIXEL_MAX = 255.0


def _picture_buffers(config: ModelConfig, spec: Spec, stats: Stats) -> dict[str, np.ndarray]:
    """The mean picture under every stacked image `(C, height, width)`, and the deviation of a pixel."""
    if config.pixels == "unit":
        return {"observation_mean": np.zeros(1), "observation_std": np.full(1, PIXEL_MAX)}
    mean = torch.from_numpy(stats.observation_mean)
    stacked = stacked_images(mean.expand(1, spec.frame_stack, *spec.observation_shape), torch.Size([1]), spec)
    return {"observation_mean": stacked[0].numpy(), "observation_std": stats.observation_std.reshape(1)}
