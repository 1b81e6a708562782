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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro
from tyro.conf import Positional

from scanrl import __version__
from scanrl.arguments import option_value, parse, parse_call
from scanrl.config import read_yaml, to_yaml
from scanrl.console import print_json, print_table, text
from scanrl.data.options import ReadOptions
from scanrl.evaluation import EPISODES, NUM_ENVS, SEED
from scanrl.failures import tell_failure
from scanrl.types import DataError

if TYPE_CHECKING:
    from scanrl.run import Run

__all__ = ["VERBS", "main"]

Uri: TypeAlias = Annotated[Positional[str], tyro.conf.arg(metavar="URI")]
OutPath: TypeAlias = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Reading: TypeAlias = tyro.conf.OmitArgPrefixes[ReadOptions]
RunPath: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]

READING = ReadOptions()
SHORT = {
    "--steps": "--train.steps",
    "--seed": "--train.seed",
    "--val-split": "--train.validation",
    "--context": "--model.context",
}
"""Short forms `scanrl train` accepts for what people change most."""

SHORT_WINDOW = 32
"""A state carried through a whole episode is far from what windows of fewer steps have trained."""


def demo(out: Path = Path("outputs/demo"), seconds: float = 75.0, episodes: int = 20, seed: int = 0) -> int:
    """Train Decision MetaMamba on the bundled Hopper data, try it in Hopper-v5, and write a report.

    Args:
        out: folder for the run; an earlier demo in it is replaced.
        seconds: how long to train, wall clock.
        episodes: episodes per policy.
        seed: seed of everything.
    """
    _check("demo", 0, seconds=seconds, seed=seed)
    _check("demo", 1, episodes=episodes)
    from scanrl.demo import run_demo

    run_demo(out, seconds=seconds, episodes=episodes, seed=seed)
    return 0


def doctor(json: bool = False) -> int:
    """Show what this machine offers: device, which scan and which step run and why, versions, extras.

    Args:
        json: print one JSON object instead of tables.
    """
    from scanrl.doctor import EXTRAS, describe_steps, diagnose

    found = diagnose()
    if json:
        return print_json(found)
    device, scan = found["device"], found["scan"]
    rows = [("device", f"{device['kind']}: {device['name']}, {device['cores']} cores, {device['threads']} threads")]
    rows += [("system", f"{device['system']}, Python {device['python']}")]
    rows += [("scan", f"{scan['impl']} ({scan['detail']}): {scan['reason']}")]
    rows += [("step", describe_steps(found["step"]))]
    rows += [(name, number or "not installed") for name, number in found["versions"].items()]
    for name, there in found["extras"].items():
        state = "present" if there else f"missing: pip install 'scanrl[{name}]'"
        rows.append((f"[{name}]", f"{state} ({EXTRAS[name][1]})"))
    print_table(("", "found"), rows)
    return 0


def models(observations: int = 11, actions: int = 3, discrete: bool = False, json: bool = False) -> int:
    """List the recipes with their parameter counts.

    Args:
        observations: entries of an observation.
        actions: entries of an action, or number of choices with --discrete.
        discrete: actions are choices.
        json: print one JSON object instead of a table.
    """
    _check("models", 1, observations=observations, actions=actions)
    from scanrl.models.catalogue import catalogue

    rows = catalogue(observations, actions, "discrete" if discrete else "continuous")
    if json:
        return print_json({"observations": observations, "actions": actions, "recipes": rows})
    print_table(
        ("recipe", "parameters", "context", "what it is"),
        [(r["recipe"], f"{r['parameters']:,}", r["context"], r["about"]) for r in rows],
        right=(1, 2),
    )
    return 0


def data_info(uri: Uri, reading: Reading = READING, json: bool = False) -> int:
    """Show what a dataset holds.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
        json: print one JSON object instead of a table.
    """
    from scanrl.data.summary import summary

    found = summary(reading.load(uri))
    if json:
        return print_json(found)
    print_table(("", found["name"]), [(k, text(v)) for k, v in found.items() if k != "name"])
    return 0


def data_convert(uri: Uri, out: OutPath, overwrite: bool = False, reading: Reading = READING) -> int:
    """Convert a dataset to a store: a checksummed folder of memory-mappable arrays.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
        out: the folder to write.
        overwrite: replace a store that is already there.
    """
    from scanrl.data import write_store

    dataset = reading.load(uri)
    write_store(dataset, out, overwrite=overwrite)
    print(f"{out}: {len(dataset)} episodes, {dataset.steps} steps, fingerprint {dataset.fingerprint[:12]}")
    return 0


def data_validate(uri: Uri, reading: Reading = READING) -> int:
    """Check a dataset; list what is wrong with it and exit with 1.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
    """
    from scanrl.data import check

    dataset = reading.load(uri, checked=False)
    problems = check(dataset)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{uri}: {len(dataset)} episodes, {dataset.steps} steps: nothing wrong found")
    return 1 if problems else 0


def train(words: Sequence[str]) -> int:
    """Train a recipe on recorded episodes."""
    from scanrl.models.recipes import RECIPES
    from scanrl.seeds import read_seeds
    from scanrl.settings import RunConfig, TrainArguments, run_config

    words = [_long(word) for word in words]
    asked_help = bool({"-h", "--help"} & set(words))
    file = option_value(words, "--config")
    settings = read_yaml(file) if file else {}
    name = words[0] if words and not words[0].startswith("-") else settings.get("recipe")
    if name is None and not asked_help:
        raise DataError(f"train: recipe: expected one of {', '.join(RECIPES)} as the first word, got none")
    # Recipe and file are known before the rest is parsed, so that they are the defaults of every other option.
    base = run_config("dmm-dc" if name is None else str(name), settings)
    default = TrainArguments(base.recipe, base.data, base.env, base.model, base.train, base.eval)
    chosen: TrainArguments = parse(TrainArguments, "train", words, default=default)
    config = RunConfig(base.recipe, chosen.data, chosen.env, chosen.model, chosen.train, chosen.eval)
    if chosen.seeds is not None and option_value(words, "--train.seed") is not None:
        raise DataError(f"train: seeds: expected --seed or --seeds, got both (--seeds {chosen.seeds})")
    seeds = (config.train.seed,) if chosen.seeds is None else read_seeds(chosen.seeds)
    if chosen.print_config:
        print(to_yaml(config), end="")
        return 0
    if not config.data:
        raise DataError("train: data: expected --data with a file, folder or URI, got none")
    from scanrl.training import run_seeds

    return _tell_runs(run_seeds(config, seeds, config.data, out=chosen.out, progress=True))


def resume(run: RunPath) -> int:
    """Continue a run, or the runs of several seeds, from the latest checkpoint.

    Args:
        run: the run folder, or the folder of several seeds.
    """
    from scanrl.seeds import is_seeds_folder
    from scanrl.training import resume as resume_run
    from scanrl.training import resume_seeds

    return _tell_runs(resume_seeds(run, progress=True) if is_seeds_folder(run) else [resume_run(run, progress=True)])


def evaluate(
    run: RunPath,
    env: str | None = None,
    episodes: int = EPISODES,
    target_return: tuple[float | Literal["auto"], ...] = ("auto",),
    sweep_targets: bool = False,
    context: int | Literal["recurrent"] = "recurrent",
    seed: int = SEED,
    num_envs: int = NUM_ENVS,
    save: Path | None = None,
    json: bool = False,
) -> int:
    """Play episodes with a trained policy and score them.

    Args:
        run: a run folder (its latest checkpoint) or a checkpoint folder.
        env: Gymnasium id; by default the run's own.
        episodes: episodes per target return.
        target_return: returns to ask for, raw units; auto is the best return of the training data.
        sweep_targets: ask for the data's mean return, its best, and two in between instead.
        context: recurrent, or the number of steps whose window is recomputed at every step.
        seed: decides the initial state of each episode.
        num_envs: environments stepped side by side.
        save: also write the episodes as a store into this folder.
        json: print one JSON object instead of a table.
    """
    _check("eval", 1, episodes=episodes, num_envs=num_envs)
    _check("eval", 0, seed=seed)
    from scanrl.scoring import score_run

    wanted: tuple[float | Literal["auto"], ...] | None = None if sweep_targets else target_return
    found = score_run(run, env, wanted, episodes=episodes, context=context, seed=seed, num_envs=num_envs, save=save)
    if json:
        return print_json([scores.to_json() for scores in found])
    print_table(
        ("target", "return", "95 % interval", "normalised", "length", "episodes"),
        [
            (
                "-" if s.target_return is None else f"{s.target_return:g}",
                f"{s.mean:.1f} ± {s.std:.1f}",
                "-" if s.interval is None else f"{s.interval[0]:.1f} to {s.interval[1]:.1f}",
                "-" if s.normalized is None else f"{s.normalized.mean():.1f}",
                f"{s.lengths.mean():.0f}",
                s.episodes,
            )
            for s in found
        ],
        right=(0, 1, 2, 3, 4, 5),
    )
    print(f"{found[0].env_id}, context {found[0].context}, seed {seed}; 1 training run: no interval over seeds")
    window = found[0].trained_context
    if context == "recurrent" and window is not None and window < SHORT_WINDOW:
        steps = f"{window} step{'s' * (window > 1)}"
        print(
            f"trained on windows of {steps}: --context {window} recomputes that window and may score very differently"
        )
    return 0


def bench_speed(threads: int | None = None, json: bool = False) -> int:
    """Time scan, training, acting and batches beside this machine's own limits (about a minute).

    Args:
        threads: for scan, mixer and training, by default as torch decides; acting and batches are timed on one.
        json: print one JSON object instead of tables.
    """
    if threads is not None:
        _check("bench speed", 1, threads=threads)
    from scanrl.bench.show import show
    from scanrl.bench.speed import speed

    found = speed(threads, progress=True)
    if json:
        return print_json(found)
    show(found)
    return 0


VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "doctor": doctor,
    "models": models,
    "data info": data_info,
    "data convert": data_convert,
    "data validate": data_validate,
    "train": train,
    "resume": resume,
    "eval": evaluate,
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


def _check(verb: str, lowest: float, **values: float) -> None:
    for name, value in values.items():
        if not lowest <= value < float("inf"):
            option = name.replace("_", "-")
            raise DataError(f"{verb}: --{option}: expected at least {lowest} and finite, got {value}")


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"scanrl: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _long(word: str) -> str:
    key, equals, value = word.partition("=")
    return SHORT.get(key, key) + equals + value


def _overview() -> str:
    lines = ["usage: scanrl VERB [options]   (scanrl VERB --help tells the options of a verb)", ""]
    for verb, function in VERBS.items():
        lines.append(f"  {verb:<14} {(function.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "  --debug        with any verb: show where an error came from", "  --version"])


def _tell_runs(runs: Sequence[Run]) -> int:
    first = runs[0]
    if len(runs) > 1:
        from scanrl.seeds import seed_table

        head, rows = seed_table(runs)
        print_table(head, rows, right=range(1, len(head)))
        print(f"runs: {first.path.parent}")
    else:
        last = first.metrics()[-1:] or [{}]
        for name, value in last[0].items():
            print(f"{name:<24} {text(value)}")
        print(f"run: {first.path}")
    env = first.config.env or first.checkpoint().spec.env_id or "ENV"
    print(f"next: scanrl eval {first.path} --env {env}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
