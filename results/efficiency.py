"""What learning in context costs: an update and an environment step, at contexts of 200, 2,000 and 4,000 steps.

    python -m results.efficiency run            # some minutes on a quiet machine; writes results/efficiency.jsonl
    python -m results.efficiency run --quick    # few repeats: for a look; the rows and the page say so
    python -m results.efficiency page           # writes results/efficiency.md from results/efficiency.jsonl

Four ways to act with three models of width 128, whose tokens are whole steps (observation, last action, last reward):
`ad recomputed`, a transformer over its whole window at every step, as most code has it; `ad cached`, the same with keys
and values in a ring of memory; `ad-mamba`, whose state is carried; `dmh`, Decision Mamba-Hybrid at its paper's sizes, a
sub-goal every 20 steps. Transformer, Mamba and the executor of the hybrid have three layers each, its planner two.

An update is that of training: loss, backward, clipping, AdamW. All batches have the same number of steps, in contexts
of four episodes. An environment step is one of one stream when as many have been played as the context has: the cache
is full. Times of the hybrid are means over the steps of a sub-goal. All candidates of a table take turns in one process
on one thread; before that, each has acted as its model's training forward does.

Huang et al. 2024 (Decision Mamba-Hybrid, arXiv 2406.00079) compare with a transformer that recomputes alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.speed import BUSY, Meter, machine
from scanrl.batch import Batch
from scanrl.bench.equality import require_equal
from scanrl.bench.models import HOPPER, hopper_model, windows
from scanrl.bench.timing import Timing, measure
from scanrl.bench.updates import training_step
from scanrl.models.build import Model, build_model
from scanrl.models.recipes import recipe
from scanrl.policy import Policy

ROWS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).with_suffix(".md")
CONTEXTS = (200, 2000, 4000)  # steps; those of the paper
EPISODES = 4  # of a context
STEPS = 4000  # of a batch
SUBGOAL = 20  # steps
SIZES: dict[str, dict[str, Any]] = {
    "ad": {"pattern": "(attention mlp)*3"},
    "ad-mamba": {"pattern": "(mamba mlp)*3"},
    "dmh": {
        "pattern": "(attention mlp)*3",
        "planner": "mamba*2",
        "subgoal_steps": SUBGOAL,
        "subgoal_size": 128,
    },
}
WAYS = ("ad recomputed", "ad cached", "ad-mamba", "dmh")


class Effort(NamedTuple):
    """How long is measured: turns of each candidate, and seconds of one."""

    update_turns: int
    step_turns: int
    turn_s: float


FULL, QUICK = Effort(8, 15, 0.5), Effort(2, 4, 0.2)


def model(name: str, steps: int, width: int = 128) -> Model:
    """The network of a recipe at the sizes of the study; its attention reaches back `steps` steps."""
    config = replace(recipe(name).model, width=width, context=steps, **SIZES[name])
    return build_model(config, HOPPER, hopper_model("bc").stats)


def contexts(rows: int, steps: int) -> Batch:
    """Random contexts of `EPISODES` episodes, with what sub-goals are trained towards."""
    batch = windows(rows, steps)
    episode = -(-steps // EPISODES)
    return batch._replace(
        timesteps=(torch.arange(steps) % episode).expand(rows, steps),
        goals=torch.randn_like(batch.observations),
        goal_values=torch.ones_like(batch.rewards),
    )


def policy_of(name: str, steps: int, width: int = 128) -> Policy:
    return Policy(model(name, steps, width), forget="task")


def recomputed(net: Model, batch: Batch) -> Callable[[], torch.Tensor]:
    """The last actions of a batch from the whole of it, `(B, A)`: what a policy computes that carries nothing."""
    net.eval()

    def step() -> torch.Tensor:
        with torch.inference_mode():
            hidden, *_ = net(batch)
            return net.tokens.unscale_actions(net.head.act(hidden[:, -1]))

    return step


def require_equal_acting(width: int = 128) -> None:
    """Plays three episodes and more with every model, whose training forward says what it should have done.

    Raises:
        Differs: a way to act computes something else.
    """
    steps = 3 * SUBGOAL + 8
    batch = contexts(1, steps)
    for name in SIZES:
        policy = policy_of(name, steps, width)
        seen, rewards, times = batch.observations[0].numpy(), batch.rewards[0].numpy(), batch.timesteps[0].numpy()
        acted = [policy.act(seen[t], rewards[t - 1] if t else 0.0, times[t] == 0) for t in range(steps)]
        played = batch._replace(actions=torch.from_numpy(np.array(acted))[None])
        with torch.inference_mode():
            truth = policy.model.actions(played)
        require_equal(name, [played.actions], [truth], 1e-4)
        if name == "ad":
            require_equal("ad recomputed", [recomputed(policy.model, played)()], [truth[:, -1]], 1e-4)


def updates(steps: int, effort: Effort) -> list[dict[str, Any]]:
    """Rows of an update of every model on contexts of `steps` steps."""
    batch = contexts(max(1, STEPS // steps), steps)
    nets = {name: model(name, steps).train() for name in SIZES}
    ways = {name: training_step(net.loss, net.parameters(), batch) for name, net in nets.items()}
    timings = measure(ways, effort.update_turns, turn_s=effort.turn_s)
    return [_row("update", steps, name, timing) for name, timing in timings.items()]


def environment_steps(steps: int, effort: Effort) -> list[dict[str, Any]]:
    """Rows of a step after `steps` steps, in every way to act."""
    policies = {name: policy_of(name, steps) for name in SIZES}
    seen, earned = np.random.default_rng(0).normal(size=(steps, 11)).astype(np.float32), 0.5
    for policy in policies.values():
        for x in seen:
            policy.act(x, earned)

    def several(policy: Policy) -> None:
        for _ in range(SUBGOAL):
            policy.act(seen[0], earned)

    window = Policy(policies["ad"].model, context=steps)
    window.act(seen[0])
    ways = {
        "ad recomputed": recomputed(policies["ad"].model, contexts(1, steps)),
        "ad cached": partial(policies["ad"].act, seen[0], earned),
        "ad-mamba": partial(policies["ad-mamba"].act, seen[0], earned),
        "dmh": partial(several, policies["dmh"]),
    }
    timings = measure(ways, effort.step_turns, turn_s=effort.turn_s)
    timings["dmh"] = Timing(*(x / SUBGOAL for x in timings["dmh"]))
    carriers = {"ad recomputed": window, "ad cached": policies["ad"], **policies}
    return [
        _row("step", steps, way, timing)
        | {"state_kb": carriers[way].state_bytes() / 1024, "stepping": carriers[way].step_choice().impl}
        for way, timing in timings.items()
    ]


def _row(part: str, steps: int, way: str, timing: Timing) -> dict[str, Any]:
    times = {"median_ms": timing.median_ms, "p10_ms": timing.p10, "p90_ms": timing.p90}
    return {"part": part, "context": steps, "impl": way, **times, "threads": torch.get_num_threads()}


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; the first says where and when."""
    effort, meter = (QUICK if quick else FULL), Meter()
    require_equal_acting()
    rows = [row for steps in CONTEXTS for row in (*updates(steps, effort), *environment_steps(steps, effort))]
    others, spent = meter.read()
    about = {**machine(quick), "part": "machine", "seconds": round(spent), "others": others}
    del about["benchmark"]
    return [about | {"provisional": quick or others > BUSY}, *rows]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the machine, updates, environment steps."""
    about = rows[0]
    lines = ["# What learning in context costs", ""]
    lines += ["Protocol and command: `results/efficiency.py`; rows: `results/efficiency.jsonl`.", ""]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    lines += [
        f"{about['processor']}, one thread, kernels {about['kernels']}; {versions}; revision {about['revision']}."
    ]
    if about["provisional"]:
        busy = f"on a machine that was busy with other work ({about['others']} processors)"
        lines += ["", f"**Provisional**: measured {'shortly, ' if about['quick'] else ''}{busy}; these are no results."]
    lines += ["", "## Offline: training", ""]
    lines += [f"Seconds for 1,000 updates on {STEPS:,} steps each, medians (10th to 90th percentile).", ""]
    lines += _table(("context", *SIZES), [[f"{c:,}", *(_time(rows, "update", c, n) for n in SIZES)] for c in CONTEXTS])
    lines += ["", "## Online: acting", ""]
    lines += ["Milliseconds for one environment step, medians (10th to 90th percentile)."]
    lines += ["`faster` is how many times as fast as recomputing, and as the cache.", ""]
    head = ("context", "way", "ms", "faster than recomputing", "faster than the cache", "state, KB")
    lines += _table(head, [_line(rows, c, way) for c in CONTEXTS for way in WAYS])
    return "\n".join(lines) + "\n"


def _find(rows: Sequence[dict[str, Any]], part: str, steps: int, way: str) -> dict[str, Any]:
    [found] = [r for r in rows if (r["part"], r.get("context"), r.get("impl")) == (part, steps, way)]
    return found


def _time(rows: Sequence[dict[str, Any]], part: str, steps: int, way: str) -> str:
    """Milliseconds of one, which are seconds of a thousand."""
    row = _find(rows, part, steps, way)
    median, low, high = (_number(row[key]) for key in ("median_ms", "p10_ms", "p90_ms"))
    return f"{median} ({low} to {high})"


def _line(rows: Sequence[dict[str, Any]], steps: int, way: str) -> list[str]:
    own = _find(rows, "step", steps, way)
    ratios = [_find(rows, "step", steps, other)["median_ms"] / own["median_ms"] for other in WAYS[:2]]
    faster = [f"{_number(ratio)}x" for ratio in ratios]
    return [f"{steps:,}", way, _time(rows, "step", steps, way), *faster, f"{own['state_kb']:,.0f}"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where the rows are")
    chosen = parser.parse_args(words)
    if chosen.what == "run":
        torch.set_num_threads(1)
        chosen.rows.write_text("".join(json.dumps(row) + "\n" for row in run(chosen.quick)), encoding="utf-8")
    else:
        rows = [json.loads(line) for line in chosen.rows.read_text(encoding="utf-8").splitlines()]
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
