"""The command `scanrl`: one verb, one function. Options are made from signatures and the settings' docstrings.

Exit codes: 0 done, 1 checked and found wanting, 2 bad input, 3 corrupt file, 4 out of resources, 130/143 stopped by a
signal. Errors are one line on standard error; `--debug` shows where they came from.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from scanrl import __version__
from scanrl.arguments import parse_call
from scanrl.failures import tell_failure
from scanrl.types import DataError
from scanrl.verbs.analyse import analyse_activations, analyse_eigenvalues, analyse_scaling
from scanrl.verbs.bench import bench_report, bench_run, bench_speed
from scanrl.verbs.collect import collect
from scanrl.verbs.data import data_convert, data_info, data_validate
from scanrl.verbs.evaluate import evaluate
from scanrl.verbs.general import demo, doctor, models, presets
from scanrl.verbs.train import resume, train

__all__ = ["VERBS", "main"]

VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "doctor": doctor,
    "models": models,
    "presets": presets,
    "data info": data_info,
    "data convert": data_convert,
    "data validate": data_validate,
    "collect": collect,
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "analyse eigenvalues": analyse_eigenvalues,
    "analyse activations": analyse_activations,
    "analyse scaling": analyse_scaling,
    "bench run": bench_run,
    "bench report": bench_report,
    "bench speed": bench_speed,
}
FAMILIES = {verb.split()[0] for verb in VERBS if " " in verb}
"""First words of the verbs that have two."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    # Before torch starts its threads: a thread that spins while it waits for one that another process has displaced
    # makes two threads on a busy machine tens of times slower than one; one that sleeps at once takes twice as long on
    # a quiet machine, where more work is microseconds away. So it spins for some microseconds (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch(words)
        except BaseException as error:
            if debug and not isinstance(error, SystemExit):
                traceback.print_exc()
            return tell_failure(error)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in _HELP or (words[0] in FAMILIES and words[1:2] and words[1] in _HELP):
        print(_overview())
        return 0
    if words[0] in ("--version", "version"):
        print(f"scanrl {__version__}")
        return 0
    size = 2 if words[0] in FAMILIES else 1
    verb = " ".join(words[:size])
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"verb: expected one of {', '.join(VERBS)}, got {verb!r}{hint}")
    rest = words[size:]
    if verb == "train":
        return train(rest)
    return parse_call(VERBS[verb], verb, rest)


_HELP = ("-h", "--help", "help")


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"scanrl: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _overview() -> str:
    lines = ["usage: scanrl VERB [options]   (scanrl VERB --help tells the options of a verb)", ""]
    width = max(map(len, VERBS))
    for verb, function in VERBS.items():
        lines.append(f"  {verb:<{width}} {(function.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "  --debug        with any verb: show where an error came from", "  --version"])


if __name__ == "__main__":
    sys.exit(main())
