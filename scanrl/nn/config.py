"""`ModelConfig`: every choice that shapes a network, in one flat dataclass.

Field docstrings carry unit and meaning; the command line's help is made from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from scanrl.types import DataError

__all__ = [
    "LOCAL_MIXERS",
    "Activation",
    "DtInit",
    "EncoderName",
    "HeadName",
    "InnerMixer",
    "ModelConfig",
    "PixelScaling",
    "PlannerReads",
    "PlannerTokens",
    "ReturnLoss",
    "ReturnSource",
    "SubgoalDraw",
    "SubgoalTargets",
    "TokenActivation",
]

EncoderName = Literal["atari"]
PixelScaling = Literal["standardised", "unit"]
TokenActivation = Literal["none", "tanh"]
Activation = Literal["relu", "gelu", "silu"]
HeadName = Literal["auto", "auto_entropy", "regression", "categorical", "gaussian", "entropy_gaussian"]
InnerMixer = Literal["conv4", "none", "conv", "modal_conv", "dense", "modal_linear"]
SubgoalTargets = Literal["all", "rewarded", "none"]
SubgoalDraw = Literal["training", "always", "never"]
PlannerTokens = Literal["merged", "separate"]
PlannerReads = Literal["sums", "actions", "steps"]
DtInit = Literal["official", "gpt2_reset"]
ReturnSource = Literal["given", "predicted"]
ReturnLoss = Literal["scaled", "relative"]

LOCAL_MIXERS = ("conv", "modal_conv", "dense", "modal_linear")


@dataclass(frozen=True)
class ModelConfig:
    """What a decision model is made of; `scanrl.models.recipes` has one function per paper that returns one."""

    pattern: str = "(modal_conv mamba)*3"
    """The stack: names from MIXERS, repeats as `(...)*3`; `mamba:none` drops the residual, `mamba:post` adds the
    normalised input instead of the raw one."""
    layout: str = "Rsa"
    """Order of the tokens of one step: R return-to-go, s observation, a action, r reward. The action is read at s, or
    at an R right behind it."""
    merged: bool = False
    """One token per step: the embeddings of this one's letters up to where the action is read, and of those that
    follow in the last step, added up, with a mark where an episode begins."""
    width: int = 64
    """Model width D."""
    context: int = 8
    """Training window, environment steps. Attention also remembers this many steps when it acts recurrently."""
    head: HeadName = "auto"
    """Action head: auto takes regression (tanh, squared error) for continuous actions, categorical for discrete;
    auto_entropy takes entropy_gaussian or categorical. An action of several parts has one for each; the name is then
    that of its continuous parts' heads."""
    time_embedding: bool = False
    """Add a learned embedding of the step index within the episode to every token of the step."""
    max_length: int = 1000
    """Rows of the time embedding table, environment steps; later steps share the last row."""
    dropout: float = 0.0
    """Probability of dropping an entry of the token embeddings, of attention and of MLP outputs; the papers take 0.1
    for 100,000 updates."""
    token_norm: bool = True
    """Normalise every token (LayerNorm) before the stack; the papers' Atari models do not."""
    token_activation: TokenActivation = "none"
    """What follows the embedding of every token, before the time embedding: tanh in the papers' Atari models."""
    encoder: EncoderName = "atari"
    """Network that turns an image into a token; vectors have a linear map."""
    pixels: PixelScaling = "standardised"
    """What an image encoder reads: standardised takes the data's mean picture away and divides by the deviation from
    it; unit divides by 255, as the papers do. In unit pixels nearly everything stands still and hides what moves."""
    heads: int = 1
    """Attention heads; must divide the width."""
    mlp_ratio: int = 4
    """Hidden width of the MLP, as a multiple of D."""
    activation: Activation = "gelu"
    """Nonlinearity of the MLP."""
    window: int = 6
    """Reach of the local mixers (conv, modal_conv, dense, modal_linear), tokens, the present one included."""
    expand: int = 2
    """Inner width of Mamba, E, as a multiple of D."""
    state_size: int = 16
    """State entries per channel of Mamba, Mamba-2 and S4D, N; S4D keeps half as many conjugate pairs, rounded up."""
    head_size: int = 16
    """Channels per head of Mamba-2, P; must divide the inner width."""
    inner_mixer: InnerMixer = "conv4"
    """What mixes tokens inside Mamba before the scan: its own 4-tap convolution, none, or a local mixer at width E."""
    inner_activation: Literal["silu", "gelu"] = "silu"
    """Nonlinearity of what enters Mamba's scan; the gate stays SiLU."""
    dt_init: DtInit = "official"
    """Step sizes of Mamba at the start: official draws them from 1e-3 to 1e-1 per token; gpt2_reset starts all at
    softplus(0) = 0.69, as released decision-Mamba code does by overwriting the bias."""
    s4d_init: Literal["lin", "real"] = "lin"
    """Modes of S4D at the start: lin -1/2 + i pi n, which oscillate; real -(n + 1), which only decay."""
    gloma_branch: Literal["both", "global", "local"] = "both"
    """Branches of GLoMa: Mamba over the whole sequence, over windows of it, or both."""
    gloma_fusion: Literal["sum", "gate", "concat"] = "sum"
    """How GLoMa joins its branches: their sum, a learned gate between them, or a linear map of both."""
    gloma_windows: Literal["block", "sliding"] = "block"
    """Windows of GLoMa's local branch: block restarts it at every window; sliding shows each token its last ones."""
    gloma_steps: int = 5
    """Window of GLoMa's local branch, environment steps."""
    gloma_share: bool = False
    """One set of Mamba weights for both branches of GLoMa."""
    share_norms: bool = False
    """One LayerNorm per position of the repeated group, shared by all repeats."""
    frozen_shared_mixer: bool = False
    """One local mixer per position of the repeated group for all repeats, left as it was initialised."""
    subgoal_steps: int = 0
    """Environment steps between two sub-goals, c, of Decision Mamba-Hybrid; 0: a model without sub-goals."""
    subgoal_choices: tuple[int, ...] = ()
    """Several c that one network learns at once, subgoal_steps among them: an update is made for all of them, and takes
    as long; the longest whose held-out loss is within a standard error of the lowest acts. None: subgoal_steps
    alone."""
    subgoal_size: int = 128
    """Entries of a sub-goal, Z."""
    subgoal_draw: SubgoalDraw = "training"
    """When a sub-goal is drawn from its normal distribution instead of being its mean: in training, always (acting
    too, from one list of random numbers for all streams), or never, and then only the mean is learned."""
    subgoal_targets: SubgoalTargets = "all"
    """Steps on which the executor is also trained towards the valuable state ahead: all, those with a reward ahead
    (without one the valuable state is the next one and gives the action away), or none."""
    subgoal_prefix: bool = False
    """One sub-goal token before a segment; otherwise one before each of its steps."""
    planner: str = "mamba*2"
    """The stack that reads the long history, in the form of `pattern`; none: sub-goals are zero, so that the executor
    acts on its segment alone."""
    planner_tokens: PlannerTokens = "merged"
    """Reward sum, episode flag and observation as one token per segment (merged) or as three."""
    planner_reads: PlannerReads = "sums"
    """What it is told of the segment before: its reward sum alone, also the actions, or also all of its steps
    (observations, actions, rewards)."""
    query: bool = False
    """The Decision-Pretrained Transformer: the context is a set of transitions, one token (s, a, s', r) each, behind
    the observation for which an action is asked. The layout is then s, and context the most transitions."""
    returns: ReturnSource = "given"
    """Where the return-to-go comes from when acting: given (a target, less what was earned), or predicted by the model
    at s, so that nobody has to choose a target; R then stands right behind s."""
    expectile: float = 0.99
    """Which expectile of the return-to-go is predicted: 0.5 is the mean, towards 1 the best that the data show."""
    return_loss: ReturnLoss = "scaled"
    """Errors of the predicted return in units of the return scale, or relative to the batch's mean |R|."""
    return_weight: float = 1.0
    """Weight of the expectile loss beside the action loss."""
    return_bins: int = 60
    """Classes of the return-to-go, equal bins from 0 to the best return of the data, where bins_weight is above 0."""
    bins_weight: float = 0.0
    """Weight of the cross-entropy over those classes; 0 leaves that head out."""
    state_weight: float = 0.0
    """Weight of the squared error of the predicted next observation (standardised); 0 leaves that head out."""
    hide_returns: bool = False
    """Attention does not see R tokens but the first of its window; later ones act at their own place alone."""
    reference_extras: bool = False
    """Carry parameters of the released code that no output depends on, so that parameter counts match it."""

    def __post_init__(self) -> None:
        for name in (
            "width",
            "context",
            "max_length",
            "heads",
            "mlp_ratio",
            "window",
            "expand",
            "state_size",
            "subgoal_size",
            "head_size",
            "gloma_steps",
            "return_bins",
        ):
            if getattr(self, name) < 1:
                raise DataError(f"model.{name}: expected at least 1, got {getattr(self, name)}")
        if self.subgoal_steps < 0:
            raise DataError(f"model.subgoal_steps: expected at least 0, got {self.subgoal_steps}")
        if self.subgoal_choices:
            choices = sorted(set(self.subgoal_choices))
            if choices[0] < 1 or len(choices) < len(self.subgoal_choices):
                found = list(self.subgoal_choices)
                raise DataError(f"model.subgoal_choices: expected different numbers of at least 1, got {found}")
            if self.subgoal_steps not in choices:
                raise DataError(f"model.subgoal_steps: expected one of {choices}, got {self.subgoal_steps}")
        if not 0.0 <= self.dropout < 1.0:
            raise DataError(f"model.dropout: expected a value in [0, 1), got {self.dropout}")
        if not re.fullmatch(r"(?!.*(.).*\1)[Rsar]+", self.layout) or "s" not in self.layout:
            raise DataError(f"model.layout: expected distinct letters of R, s, a, r with an s, got {self.layout!r}")
        if not set(self.layout[: self.layout.index("s")]) <= {"R"}:
            # An action or reward before the observation would be this step's: unknown when the policy acts.
            raise DataError(f"model.layout: expected only R before s, got {self.layout!r}")
        if self.returns == "predicted" and "sR" not in self.layout:
            raise DataError(f"model.layout: expected R right behind s where returns are predicted, got {self.layout!r}")
        if self.merged and (self.returns == "predicted" or self.hide_returns):
            raise DataError("model.merged: expected false where returns are predicted or hidden, got true")
        if self.query:
            self._check_query()
        if not 0.0 < self.expectile < 1.0:
            raise DataError(f"model.expectile: expected a value in (0, 1), got {self.expectile}")
        for name in ("return_weight", "bins_weight", "state_weight"):
            if getattr(self, name) < 0:
                raise DataError(f"model.{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("bins_weight", "state_weight"):
            if self.returns == "given" and getattr(self, name):
                raise DataError(f"model.{name}: expected 0 where returns are given, got {getattr(self, name)}")
        if self.width % self.heads:
            raise DataError(f"model.heads: expected a divisor of the width {self.width}, got {self.heads}")

    def _check_query(self) -> None:
        if self.layout != "s" or self.merged:
            told = f"{self.layout!r}{', merged' if self.merged else ''}"
            raise DataError(f"model.layout: expected s, not merged, for a model with a query, got {told}")
        if self.subgoal_steps:
            raise DataError(f"model.subgoal_steps: expected 0 for a model with a query, got {self.subgoal_steps}")

    @property
    def period(self) -> int:
        """Tokens per environment step, M."""
        return 1 if self.merged else len(self.layout)

    @property
    def head_letters(self) -> int:
        """Letters of the layout that are known before acting: up to s, and an R right behind it."""
        seen = self.layout.index("s") + 1
        return seen + (self.layout[seen : seen + 1] == "R")

    @property
    def read_at(self) -> int:
        """Place in the step of the token at which the action is read: the last that is known before acting."""
        return 0 if self.merged else self.head_letters - 1

    @property
    def takes_target(self) -> bool:
        """Whether a return has to be asked for when acting."""
        return "R" in self.layout and self.returns == "given"

    @property
    def inner_width(self) -> int:
        """Channels of the scan, E."""
        return self.expand * self.width
