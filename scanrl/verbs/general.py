"""`demo`, `doctor`, `models` and `presets`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from scanrl.console import print_json, print_table, text
from scanrl.types import DataError
from scanrl.verbs.options import check

__all__ = ["demo", "doctor", "models", "presets"]


def demo(out: Path = Path("outputs/demo"), seconds: float = 75.0, episodes: int = 20, seed: int = 0) -> int:
    """Train Decision MetaMamba on the bundled Hopper data, try it in Hopper-v5, and write a report.

    Args:
        out: folder for the run; an earlier demo in it is replaced.
        seconds: how long to train, wall clock.
        episodes: episodes per policy.
        seed: seed of everything.
    """
    check("demo", 0, seconds=seconds, seed=seed)
    check("demo", 1, episodes=episodes)
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
    check("models", 1, observations=observations, actions=actions)
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


def presets(contains: str = "", json: bool = False) -> int:
    """List the presets: recipe x task at the protocol of the papers, with the scores they printed.

    Args:
        contains: show only names with this in them, e.g. dmm-dc or hopper; a single one is shown with its settings.
        json: print one JSON object instead of a table.
    """
    from scanrl.presets import presets as every

    known = every()
    contains = contains.lower()
    found = [known[contains]] if contains in known else [one for name, one in known.items() if contains in name]
    if not found:
        raise DataError(f"presets: --contains: expected part of a name, got {contains!r}")
    if json:
        return print_json([asdict(preset) for preset in found])
    rows = [
        (
            one.name,
            one.env,
            text(one.settings.get("eval.targets", ())),
            "\n".join(map(str, one.published)) or "not known",
        )
        for one in found
    ]
    head = ("preset", "environment", "targets", "printed score")
    print_table(head, [row for name, env, targets, scores in rows for row in _unfolded(name, env, targets, scores)])
    if len(found) == 1:
        print(f"\ndata of the paper: {found[0].dataset}")
        print_table(("setting", "value"), [(key, text(value)) for key, value in found[0].settings.items()])
    return 0


def _unfolded(name: str, env: str, targets: str, scores: str) -> list[tuple[str, str, str, str]]:
    """One row for each line of the last column."""
    first, *more = scores.split("\n")
    return [(name, env, targets, first), *(("", "", "", score) for score in more)]
