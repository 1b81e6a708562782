"""Times one mixer of width 128 against the length of the sequence: forward and backward, time and memory per token.

    python -m benchmarks.growth [--json] [--threads N] [--repeats N] [--length L]

`mamba` is ours; `attention` ours too, one head of torch's SDPA; the others are the same Mamba mixer, with its weights,
in other people's code. `us_per_token` and `kb_per_token` are for a whole forward and backward, the latter the most
memory that tensors took at a time beyond parameters and input; `ratio` is attention's median over the row's own.
Candidates whose cost grows with the square of the length, or whose memory would not fit, end at some length.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models import scan_replaced
from benchmarks.peers import mambapy_mixer, transformers_mixer
from scanrl.bench.equality import gradients, require_equal
from scanrl.bench.scans import classic_loop
from scanrl.bench.timing import heading, measure, print_rows, rows_of
from scanrl.kernels import keep_memory
from scanrl.nn import MIXERS, ModelConfig
from scanrl.nn.mamba import Mamba
from tools.convert_weights import mamba_under_peer_names

WIDTH = 128
BATCH = {24: 64, 240: 8, 2400: 1, 24000: 1}
LONGEST = {"mambapy": 2400, "transformers": 240, "classic loop": 240}
CHECKED = 24  # tokens of the comparison with float64


class Candidate(NamedTuple):
    """A mixer: its forward, and what gradients go to beside the input."""

    forward: Callable[[Tensor], Tensor]
    module: nn.Module

    def train(self, x: Tensor) -> list[Tensor]:
        """The output and the gradients of input and parameters."""
        return gradients(lambda: self.forward(x), [x, *self.module.parameters()])


def candidates(length: int) -> dict[str, Candidate]:
    torch.manual_seed(0)
    config = ModelConfig(width=WIDTH, layout="s", context=length)
    ours = {name: MIXERS[name](config) for name in ("mamba", "attention")}
    mamba = ours["mamba"]
    assert isinstance(mamba, Mamba)

    def looped(x: Tensor) -> Tensor:
        with scan_replaced(classic_loop):
            return mamba(x)[0]

    found = {name: Candidate(lambda x, mixer=mixer: mixer(x)[0], mixer) for name, mixer in ours.items()}
    for name, build in (("mambapy", mambapy_mixer), ("transformers", transformers_mixer)):
        if length <= LONGEST[name] and (peer := build(mamba, config)) is not None:
            found[name] = Candidate(peer, peer)
    if length <= LONGEST["classic loop"]:
        found["classic loop"] = Candidate(looped, mamba)
    return found


def require_equal_mixers(found: dict[str, Candidate]) -> None:
    """Outputs and gradients of every candidate against float64: our mixer on the reference scan, and softmax itself."""
    x = torch.randn(2, CHECKED, WIDTH, generator=torch.Generator().manual_seed(1))
    mamba, attention = (copy.deepcopy(found[name].module).double() for name in ("mamba", "attention"))
    exact = x.double().requires_grad_()
    truth = Candidate(lambda x: mamba(x)[0], mamba).train(exact)
    of_attention = Candidate(partial(softmax_attention, attention), attention).train(exact)
    names = [name for name, _ in mamba.named_parameters()]
    by_peer_name = mamba_under_peer_names(dict(zip(names, truth[2:], strict=True)))
    for name, candidate in found.items():
        expected = of_attention if name == "attention" else truth
        if name in ("mambapy", "transformers"):
            expected = [*truth[:2], *(by_peer_name[key] for key, _ in candidate.module.named_parameters())]
        require_equal(name, candidate.train(x.clone().requires_grad_()), expected, 1e-4)


def softmax_attention(module: nn.Module, x: Tensor) -> Tensor:
    """The definition: every score, a mask, a softmax."""
    q, k, v = module.get_submodule("qkv")(x).chunk(3, -1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return module.get_submodule("out")(F.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that torch's CPU allocator had given out at a time during one call, beyond what was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    # The profiler's public tables add up; the order of events, from which a peak follows, is only in its raw results.
    results = seen.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    now = peak = 0
    for _, count in events:
        now += count
        peak = max(peak, now)
    return peak


def run(length: int, repeats: int) -> list[dict[str, Any]]:
    batch = BATCH[length]
    found = candidates(length)
    require_equal_mixers(found)
    x = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    calls = {name: partial(candidate.train, x) for name, candidate in found.items()}
    peaks = {name: peak_bytes(call) for name, call in calls.items()}
    timings = measure(calls, repeats, budget_s=20)
    tokens = batch * length
    return rows_of(
        f"L={length}",
        timings,
        "attention",
        shape=f"{batch}x{length}x{WIDTH}",
        us_per_token={name: 1e3 * t.median_ms / tokens for name, t in timings.items()},
        kb_per_token={name: peak / tokens / 1024 for name, peak in peaks.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=8, help="turns of each candidate")
    parser.add_argument("--length", type=int, action="append", choices=BATCH, help="default: all")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()  # as a training run does, for all candidates
    if not chosen.json:
        print(heading())
    for length in chosen.length or BATCH:
        print_rows(run(length, chosen.repeats), chosen.json)


if __name__ == "__main__":
    main()
