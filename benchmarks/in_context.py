"""Times acting in context: one environment step of one stream with 4,000 steps of history, three layers of width 128.

    python -m benchmarks.in_context [--json] [--threads N] [--repeats N] [--context K]

The history is read as one token per step (layout `s`; a merged token costs the same) or three (`Rsa`). `recomputed`:
the whole window through torch's SDPA at every step. `cached`: our attention with its sliding cache, full, through
`Policy`. `cached in place`: the same in calls of torch on a ring of memory, without the policy's checks. `mamba`:
the carried state through `Policy`; `mamba, torch`: the same a torch call at a time, without the policy's checks.
`hybrid`: Decision Mamba-Hybrid through `Policy`, a sub-goal every 20 steps, the mean over those steps; its executor
reads one token per step, or four.
`s_per_1000` is for 1,000 environment steps; `ratio` the median of `cached in place` over the row's own. Before that,
each is compared with its model's training forward, and the two caches also with each other after their windows slid.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.kv_cache import RingTransformer
from scanrl.bench.equality import require_equal
from scanrl.bench.models import HOPPER, hopper_model, windows
from scanrl.bench.timing import Timing, heading, measure, print_rows, rows_of
from scanrl.models.build import build_model
from scanrl.models.decision import DecisionModel
from scanrl.models.hybrid import HybridModel
from scanrl.models.recipes import recipe
from scanrl.policy import Policy

LAYOUTS = {"1 token a step": "s", "3 tokens a step": "Rsa"}
PATTERNS = {"attention": "(attention mlp)*3", "mamba": "(mamba mlp)*3"}
CHECKED, SLID = 12, 4  # steps of the comparison; context of the one in which windows slide
SUBGOAL = 20  # steps


def model(kind: str, layout: str, context: int) -> DecisionModel:
    return hopper_model("dm", pattern=PATTERNS[kind], layout=layout, context=context)


def hybrid(layout: str, steps: int = SUBGOAL) -> HybridModel:
    """At the paper's sizes: width 128, two layers of Mamba, a transformer of three."""
    sizes = {"width": 128, "subgoal_size": 128, "pattern": "(attention mlp)*3", "planner": "mamba*2"}
    config = replace(recipe("dmh").model, **sizes, subgoal_steps=steps, merged=layout == "s")  # type: ignore[arg-type]
    net = build_model(config, HOPPER, hopper_model("bc").stats)
    assert isinstance(net, HybridModel)
    return net.eval()


def several(act: Callable[[np.ndarray], Any], seen: np.ndarray) -> Callable[[], None]:
    """As many steps as a sub-goal lasts."""

    def steps() -> None:
        for _ in range(SUBGOAL):
            act(seen)

    return steps


def play(act: Callable[[np.ndarray], Any], seen: np.ndarray) -> Tensor:
    """Actions `(T, A)` on observations `(T, O)`."""
    return torch.stack([torch.as_tensor(act(x)).reshape(-1) for x in seen])


def policy_of(net: DecisionModel | HybridModel) -> Callable[[np.ndarray], Any]:
    """Acts without rewards, so that the return-to-go stays what it is."""
    policy = Policy(net, target_return=1000.0 if net.config.takes_target else None)
    return policy.act


def filled(act: Callable[[np.ndarray], Any], steps: int) -> Callable[[np.ndarray], Any]:
    """The same when it has made that many steps: what a cache costs grows until it is full."""
    for x in np.random.default_rng(0).normal(size=(steps, 11)).astype(np.float32):
        act(x)
    return act


def ring_of(net: DecisionModel, filled: int = 0) -> Callable[[np.ndarray], Tensor]:
    ring, wanted = RingTransformer(net, filled), torch.tensor([1000.0])

    def act(seen: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return ring.act(torch.from_numpy(seen)[None], wanted)

    return act


def torch_step_of(net: DecisionModel) -> Callable[[np.ndarray], Tensor]:
    """The last action and the new observation through the model's own step, in eager torch."""
    layout, wanted = net.config.layout, torch.tensor([1000.0])
    state, time, action = net.initial_state(1), torch.zeros(1, dtype=torch.int64), None

    def act(seen: np.ndarray) -> Tensor:
        nonlocal state, time, action
        with torch.inference_mode():
            if action is not None and "a" in layout:
                _, state = net.feed([("a", action)], time - 1, state)
            values = {"R": wanted, "s": torch.from_numpy(seen)[None]}
            head = [(letter, values[letter]) for letter in layout if letter in values]
            hidden, state = net.feed(head, time, state)
            action, time = net.decide(hidden), time + 1
            return action

    return act


def require_equal_acting(layout: str, context: int) -> None:
    """Every way to act against the training forward over the same history, and the caches when they slide."""
    seen = np.random.default_rng(0).normal(size=(CHECKED, 11)).astype(np.float32)
    for kind in PATTERNS:
        net = model(kind, layout, context).eval()
        other = ring_of if kind == "attention" else torch_step_of
        ways = {"policy": policy_of(net), other.__name__: other(net)}
        for name, act in ways.items():
            acted = play(act, seen)
            batch = windows(1, CHECKED)._replace(
                observations=torch.from_numpy(seen)[None],
                actions=acted[None],
                returns_to_go=torch.full((1, CHECKED), 1000.0),
            )
            with torch.inference_mode():
                require_equal(f"{kind}, {name}", [acted], [net.actions(batch)[0]], 1e-4)
    net = hybrid(layout, SLID)
    acted = play(policy_of(net), seen)
    history = {"observations": torch.from_numpy(seen)[None], "actions": acted[None]}
    batch = windows(1, CHECKED)._replace(**history, rewards=torch.zeros(1, CHECKED))
    with torch.inference_mode():
        hidden, _, cut = net(batch)
        trained = net.tokens.unscale_actions(net.head.act(hidden[cut.valid]))
    require_equal("the hybrid", [acted], [trained], 1e-4)
    net = model("attention", layout, SLID).eval()
    require_equal("the cache in place", [play(ring_of(net), seen)], [play(policy_of(net), seen)], 1e-4)


def recomputed(net: DecisionModel, context: int) -> Callable[[], None]:
    """The transformer over its whole window, then the action at the last observation."""
    batch = windows(1, context)

    def step() -> None:
        with torch.inference_mode():
            hidden, _ = net(batch)
            net.tokens.unscale_actions(net.head.act(hidden[:, -1]))

    return step


def run(case: str, context: int, repeats: int) -> list[dict[str, Any]]:
    layout, seen = LAYOUTS[case], np.zeros(11, np.float32)
    require_equal_acting(layout, context)
    attention, mamba = (model(kind, layout, context).eval() for kind in ("attention", "mamba"))
    acts = {
        "cached": filled(policy_of(attention), context),
        "cached in place": ring_of(attention, context * len(layout)),
        "mamba, torch": torch_step_of(mamba),
        "mamba": policy_of(mamba),
    }
    ways = {"recomputed": recomputed(attention, context)} | {name: partial(act, seen) for name, act in acts.items()}
    ways["hybrid"] = several(policy_of(hybrid(layout)), seen)
    timings = measure(ways, repeats, turn_s=0.3)
    timings["hybrid"] = Timing(*(x / SUBGOAL for x in timings["hybrid"]))
    seconds = {name: t.median_ms for name, t in timings.items()}  # of 1,000 steps
    return rows_of(case, timings, "cached in place", context=context, s_per_1000=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, help="turns of each way, of a third of a second or one step")
    parser.add_argument("--context", type=int, default=4000, help="environment steps of history")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if not chosen.json:
        print(heading())
    for case in LAYOUTS:
        print_rows(run(case, chosen.context, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
