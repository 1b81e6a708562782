"""`RECIPES`: one function per paper, returning the `ModelConfig` of its model. Each lists where we depart from it.

Departures common to every recipe: padding is on the right, so it cannot change anything. Token embeddings keep torch's
initialisation, without which LayerNorm hides the return-to-go (see docs/log.md). Mamba's step sizes keep Mamba's own
(`dt_init="gpt2_reset"` restores what released code does to them); the dense local mixers keep torch's. Runs are made
for a tenth of the papers' 100,000 updates: no dropout (papers: 0.1), a higher step size that falls along a cosine
(papers: 1e-4 or 1e-3, constant after the warm-up).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from scanrl.config import from_values
from scanrl.nn.config import ModelConfig
from scanrl.types import Context, DataError

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """A model with what its paper trained it at."""

    model: ModelConfig
    paper: str
    """Author, year, arXiv id."""
    learning_rate: float = 3e-3
    """Highest step size of a run. Papers take 1e-4 to 1e-3 for 100,000 updates; ours are made for a tenth of that."""
    batch_size: int = 64
    """Windows per update."""
    top_fraction: float = 1.0
    """Share of the training steps, those of the best episodes, that it is trained on."""
    acting: Context = "recurrent"
    """How its policy remembers when a run evaluates it."""
    sequences: Literal["windows", "histories", "queries"] = "windows"
    """What a batch is made of; see `train.sequences`."""


# Steps: after windows of the papers' 8 or 20, a state carried through an episode costs points (docs/long_training.md).
LONG_WINDOW = 64
MAMBA_BATCH = 20  # windows: together as many steps as the papers' 64 windows of 20


def dt() -> Recipe:
    """Decision Transformer, three layers of GPT-2 on (R, s, a).

    Departures: those above. The idle state and return heads and the one-row token table of the released code are
    carried, so that the parameter count is the published one.

    Reference: Chen et al. 2021, arXiv 2106.01345.
    """
    model = ModelConfig(
        pattern="(attention mlp)*3",
        width=128,
        context=20,
        time_embedding=True,
        activation="relu",
        reference_extras=True,
    )
    return Recipe(model, "Chen et al. 2021, arXiv 2106.01345")


def dm() -> Recipe:
    """Decision Mamba (Ota): Mamba in the place of attention.

    Departures: those above; windows of 64 steps, 20 to a batch (the paper: 20 steps, 64 of them), so that the state can
    be carried; width 128 for every task, where the paper takes 256 for hopper-medium and -replay. The paper's scores
    are the best evaluation seen in training.

    Reference: Ota 2024, arXiv 2403.19925.
    """
    model = ModelConfig(pattern="(mamba mlp)*3", width=128, context=LONG_WINDOW, time_embedding=True)
    return Recipe(model, "Ota 2024, arXiv 2403.19925", batch_size=MAMBA_BATCH)


def dc() -> Recipe:
    """Decision ConvFormer: a depthwise convolution over six tokens, one kernel per modality.

    Departures: those above; width 128 as for walker2d and halfcheetah; the paper takes 256 (and 1e-4) for hopper.

    Reference: Kim et al. 2024, arXiv 2310.03022.
    """
    model = ModelConfig(pattern="(modal_conv mlp)*3", width=128, context=8, time_embedding=True)
    return Recipe(model, "Kim et al. 2024, arXiv 2310.03022")


def dc_hybrid() -> Recipe:
    """Decision ConvFormer, hybrid: attention in the last layer, convolutions in the others.

    Departures: those above; made for continuous control like `dc`, where the paper describes it for Atari.

    Reference: Kim et al. 2024, arXiv 2310.03022.
    """
    model = ModelConfig(pattern="(modal_conv mlp)*2 attention mlp", width=128, context=8, time_embedding=True)
    return Recipe(model, "Kim et al. 2024, arXiv 2310.03022")


def ds4() -> Recipe:
    """Decision S4: three S4D blocks on one token per step, of observation, return-to-go and last action.

    Departures: those above; the paper came without code, so that only its abstract is followed. Chosen here: S4D in the
    place of S4, D=64 and N=64, a LayerNorm before each block, windows of 64 steps (the paper: whole trajectories), no
    fine-tuning in the environment.

    Reference: Bar-David et al. 2023, arXiv 2306.05167; Gu et al. 2022 (S4D), arXiv 2206.11893.
    """
    model = ModelConfig(pattern="s4d*3", merged=True, width=64, context=64, state_size=64)
    return Recipe(model, "Bar-David et al. 2023, arXiv 2306.05167", learning_rate=5e-3)  # docs/log.md


def mambadm() -> Recipe:
    """MambaDM, a reconstruction: a Mamba over everything beside one over windows of five steps, then an MLP.

    Known from the paper: both branches see the same tokens and have weights of their own, their outputs are combined,
    an MLP follows, conditioning is the Decision Transformer's. It came without code. Departures: those above; windows
    and batch of training as `dm`. Chosen here: the sum of both, local windows of five steps one behind the other,
    pre-norm residuals, everything else as `dm`. The variants are in `ABLATIONS`.

    Reference: Cao et al. 2024, arXiv 2406.02013.
    """
    model = ModelConfig(pattern="(gloma mlp)*3", width=128, context=LONG_WINDOW, time_embedding=True, gloma_steps=5)
    return Recipe(model, "Cao et al. 2024, arXiv 2406.02013", batch_size=MAMBA_BATCH)


IN_CONTEXT_STEPS = 200  # ten episodes of the dark rooms


def _distillation(mixer: str, paper: str) -> Recipe:
    model = ModelConfig(pattern=f"({mixer} mlp)*2", layout="sar", merged=True, width=64, context=IN_CONTEXT_STEPS)
    return Recipe(model, paper, learning_rate=3e-3, batch_size=32, sequences="histories")


def ad() -> Recipe:
    """Algorithm Distillation: a transformer on (s, a, r) over many episodes of one task, without any return to ask for.

    Departures: two layers (the paper: four, with a wider MLP); contexts begin at any episode of a history; one token
    per step, the sum of the observation and of the last action and reward, where the paper has three (`merged=False`),
    so that a step says in itself what came of the one before; a mark where an episode begins, and no positions.

    Reference: Laskin et al. 2023, arXiv 2210.14215.
    """
    return _distillation("attention", "Laskin et al. 2023, arXiv 2210.14215")


def ad_mamba() -> Recipe:
    """Algorithm Distillation with Mamba in the place of attention, whose state goes on from episode to episode.

    Departures: as `ad`; the paper it is a baseline of gives no sizes for it.

    Reference: Huang et al. 2024 (Decision Mamba-Hybrid), arXiv 2406.00079.
    """
    return _distillation("mamba", "Huang et al. 2024, arXiv 2406.00079")


def dmh() -> Recipe:
    """Decision Mamba-Hybrid: Mamba makes sub-goals from a long history, a transformer acts on each for some steps.

    Departures: width 64, sub-goals of 32 entries, two layers of the transformer (the paper: 128, not told, three with
    three heads, which do not divide 128); an MLP behind each Mamba; a sub-goal every 20 steps everywhere (the paper: 5
    in grid worlds; `subgoal_steps`, `subgoal_choices`); one token per step and one per sub-goal (the paper: four and
    three); Mamba is told all steps of the segment before (the paper: the sum of its rewards; `planner_reads`), and
    where an episode begins; no valuable sub-goals (`subgoal_targets`): the paper's form, `ABLATIONS["dmh"]["paper"]`,
    measured no better in the dark room and takes half as long again to train; contexts in the order of learning (by
    return there: `train.context_order`), all of them imitated; torch's initialisation; a state that goes on over all
    episodes.

    Reference: Huang et al. 2024, arXiv 2406.00079.
    """
    chosen = _distillation("attention", "Huang et al. 2024, arXiv 2406.00079")
    parts: dict[str, Any] = {"subgoal_steps": 20, "subgoal_size": 32, "planner": "(mamba mlp)*2", "heads": 4}
    best: dict[str, Any] = {"planner_reads": "steps", "subgoal_targets": "none"}
    return replace(chosen, model=replace(chosen.model, **parts, **best))


def dpt() -> Recipe:
    """Decision-Pretrained Transformer: the optimal action of a state from transitions of its task in any order.

    Departures: those above; no learned positions (`time_embedding=True` adds them), since a set has none; tokens are
    normalised (`token_norm=False`: not) and torch's initialisation stays, without which it takes far longer to notice
    rewards; up to 200 transitions (the paper: 100); the empty context, with which the first episode is played, is
    trained on too; the last transition of an episode comes without its next state, which is not recorded.

    Reference: Lee et al. 2023, arXiv 2306.14892.
    """
    model = ModelConfig(pattern="(attention mlp)*4", layout="s", query=True, width=32, context=IN_CONTEXT_STEPS)
    return Recipe(model, "Lee et al. 2023, arXiv 2306.14892", sequences="queries")


METAMAMBA_RATE = 5e-3  # between 3e-3 and 1e-2, both better than 1e-3 in held-out loss on Hopper (docs/log.md)
# Windows to a batch. The cheap convolution takes the paper's 64; the dense matrix, three times as dear, has been
# measured with 16 alone, which lets a run of minutes make some thousand updates (docs/log.md).
CONVOLUTION_BATCH, LINEAR_BATCH = 64, 16


def _metamamba(first: str, second: str, width: int) -> Recipe:
    model = ModelConfig(
        pattern=f"({first} mamba)*3",
        width=width,
        context=LONG_WINDOW,
        inner_mixer=second,  # type: ignore[arg-type]
    )
    batch = CONVOLUTION_BATCH if first == "modal_conv" else LINEAR_BATCH
    return Recipe(model, "Kim 2024, arXiv 2408.10517", METAMAMBA_RATE, batch)


def dmm_c() -> Recipe:
    """Decision MetaMamba, single, convolution: a modal convolution before each scan, none inside.

    Departures: those above; windows of 64 steps (the paper: 8), so that the state can be carried; a residual round the
    scan. The released code has none; `pattern="(modal_conv mamba:none)*3"` does that.
    """
    return _metamamba("modal_conv", "none", 128)


def dmm_l() -> Recipe:
    """Decision MetaMamba, single, linear: a modal dense matrix over six tokens before each scan.

    Departures: as `dmm_c`; 16 windows to a batch (the paper: 64).
    """
    return _metamamba("modal_linear", "none", 128)


def dmm_dc() -> Recipe:
    """Decision MetaMamba, double, convolution: modal convolutions before the scan and inside Mamba.

    Departures: those above; windows of 64 steps (the paper: 8), so that the state can be carried. The text speaks of a
    post-norm residual; the released code, followed here, has pre-norm.
    """
    return _metamamba("modal_conv", "modal_conv", 64)


def dmm_dl() -> Recipe:
    """Decision MetaMamba, double, linear: modal dense matrices before the scan and inside Mamba.

    Departures: as `dmm_dc`; 16 windows to a batch (the paper: 64).
    """
    return _metamamba("modal_linear", "modal_linear", 64)


def dmm26() -> Recipe:
    """Decision MetaMamba of 2026: one dense sequence mixer per layer, Mamba at its model's width, shared norms.

    Departures: those above; windows and batch as `dmm_dl`; the mixers are trained in every domain. For AntMaze and
    Kitchen the released code holds one mixer for all layers in a plain list, so that it is never trained nor saved;
    `frozen_shared_mixer=True` (at D=128) does that, but for the saving.

    Reference: arXiv 2602.19805.
    """
    model = ModelConfig(
        pattern="(dense mamba)*3",
        width=64,
        context=LONG_WINDOW,
        expand=1,
        inner_mixer="none",
        share_norms=True,
    )
    return Recipe(model, "arXiv 2602.19805 (2026)", METAMAMBA_RATE, LINEAR_BATCH)


def bc() -> Recipe:
    """Behaviour cloning: an MLP from observation to action, no history, no return.

    The baseline every sequence model has to beat. Two residual MLP blocks on one token per step.
    """
    model = ModelConfig(pattern="mlp*2", layout="s", width=256, context=1, mlp_ratio=1, activation="relu")
    return Recipe(model, "Pomerleau 1991, Neural Computation 3(1)", batch_size=512)


def bc10() -> Recipe:
    """Behaviour cloning of the best tenth of the data: `bc` on the episodes with the highest returns.

    As many of them as hold a tenth of the steps (`train.top_fraction`), at least one.

    Departures: those of `bc`; training and held-out episodes are reduced to their best tenth each by themselves.
    """
    return replace(bc(), paper="Chen et al. 2021, arXiv 2106.01345 (10 % BC)", top_fraction=0.1)


def _edt(pattern: str, hide: bool) -> Recipe:
    model = ModelConfig(
        pattern=pattern,
        layout="sRa",
        width=128,
        context=20,
        time_embedding=True,
        heads=4,
        returns="predicted",
        return_weight=0.5,
        bins_weight=0.001,
        state_weight=1.0,
        hide_returns=hide,
    )
    return Recipe(model, "Wu et al. 2023, arXiv 2307.02484", acting="elastic")


def edt() -> Recipe:
    """Elastic Decision Transformer: predicts its return, acts on the window that promises the highest one.

    Its attention sees no return but the first of the window.

    Departures: those above; width 128, 64 windows to a batch, a time table of 1000 rows (the code: 512, 256, 4096); one
    LayerNorm more, before the first block; R is read as a number, not as the centre of one of 60 bins, and the bins go
    from 0 to the best return of the data, not between D4RL's reference scores; the last step of a window has no next
    observation to predict. When acting, no target is needed: returns of earlier steps stay as they were predicted when
    those steps were acted on (the code first reads a given target less what was earned, then predicts those of the
    whole window anew for each candidate).
    """
    return _edt("(attention:post mlp:post)*4", hide=True)


def edt_mamba() -> Recipe:
    """Elastic Decision Transformer with Mamba in the place of attention.

    Departures: as `edt`; norms stand before the mixers, not behind; nothing hides the returns, since a scan has no keys
    to be masked. Elastic acting recomputes windows from a fresh state, so that it takes as long as with attention; a
    carried state has one start only.
    """
    return _edt("(mamba mlp)*4", hide=False)


def _reinformer(pattern: str, context: int, batch: int) -> Recipe:
    model = ModelConfig(
        pattern=pattern,
        layout="sRa",
        width=128,
        context=context,
        head="auto_entropy",
        time_embedding=True,
        heads=8,
        returns="predicted",
        return_loss="relative",
    )
    return Recipe(model, "Zhuang et al. 2024, arXiv 2405.08740", batch_size=batch)


def reinformer() -> Recipe:
    """Reinformer: predicts the highest return it can expect, and acts conditioned on it.

    Departures: those above; width 128, a time table of 1000 rows (the code: 256, 4096); AdamW for LAMB, also for the
    entropy's temperature, which has an optimiser of its own in the code; one LayerNorm more, before the first block; no
    idle state head. Acts with carried keys and values of the last 5 steps (`context=5` recomputes the window, as the
    code does). Discrete actions, of which the paper has none, take the categorical head.
    """
    return _reinformer("(attention:post mlp:post)*4", 5, 128)


def reinformer_mamba() -> Recipe:
    """Reinformer with Mamba in the place of attention.

    Departures: as `reinformer`; norms stand before the mixers, not behind; windows of 64 steps, 16 to a batch, so that
    the state can be carried.
    """
    return _reinformer("(mamba mlp)*4", LONG_WINDOW, LINEAR_BATCH)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "dt": dt,
    "dm": dm,
    "dc": dc,
    "dc-hybrid": dc_hybrid,
    "ds4": ds4,
    "mambadm": mambadm,
    "dmm-c": dmm_c,
    "dmm-l": dmm_l,
    "dmm-dc": dmm_dc,
    "dmm-dl": dmm_dl,
    "dmm26": dmm26,
    "bc": bc,
    "bc10": bc10,
    "edt": edt,
    "edt-mamba": edt_mamba,
    "reinformer": reinformer,
    "reinformer-mamba": reinformer_mamba,
    "ad": ad,
    "ad-mamba": ad_mamba,
    "dmh": dmh,
    "dpt": dpt,
}


def recipe(name: str, **changes: object) -> Recipe:
    """The named recipe with some model fields replaced, e.g. `recipe("dmm-dc", context=64)`.

    Raises:
        DataError: for a name that is no recipe or no field (the nearest one is given), or a value of the wrong type.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{hint}")
    chosen = RECIPES[name]()
    return replace(chosen, model=from_values(ModelConfig, changes, chosen.model, "model."))
