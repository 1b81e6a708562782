"""The tables of recipes and variants in `docs/models.md`, from `RECIPES`, `ABLATIONS` and the committed scores.

python results/models_page.py        # rewrites them in place
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import interval_cell
from results.marked import replace_marked
from scanrl.grid.schedule import read_rows
from scanrl.grid.table import Cell, Line, lines_of
from scanrl.models.ablations import ABLATIONS
from scanrl.models.catalogue import parameter_count
from scanrl.models.recipes import RECIPES, Recipe, recipe
from scanrl.nn import ModelConfig

__all__ = ["PAGE", "PUBLISHED", "PUBLISHED_VARIANTS", "write_page"]

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HOPPER = (11, 3)
GRID, VARIANTS, BUDGET = Path(__file__).with_name("recipes"), Path(__file__).with_name("ablations"), "500 updates"


class Published(NamedTuple):
    """What a paper prints for D4RL's hopper-medium-v2 and hopper-medium-replay-v2, and how it was chosen."""

    scores: str
    selected: str


METAMAMBA = "the highest over targets and over ten evaluations during training, as the released code prints"
RERUN = "run again for the Decision MetaMamba paper, chosen as that paper's own"
IN_CONTEXT = "not told; in context, of several episodes in a row, beside columns that are CORL's best checkpoints"
PUBLISHED = {
    "dt": Published(
        "68.4; 82.5", f"{RERUN}. CORL's run: 65.1; 81.8 at the end, 69.4; 88.7 at the best of its evaluations"
    ),
    "dm": Published("83.5 ± 12.5; 82.6 ± 4.6", "the best evaluation during training, as its author says"),
    "dc": Published("89.7; 84.8", f"{RERUN}. Its own command ends at 61.6 to 65.1 on hopper-medium, others report"),
    "bc10": Published("55.5; 70.4", "CORL's run, at the end"),
    "edt": Published("70.4; 89.4", RERUN),
    "ds4": Published("54.2; 49.6", RERUN),
    "mambadm": Published("85.7 ± 7.8; 86.1 ± 2.5", "not known; as another paper (RATE) reprints them"),
    "dmm-c": Published("94.2; 91.2", METAMAMBA),
    "dmm-l": Published("96.2; 95.0", METAMAMBA),
    "dmm-dc": Published("96.5; 92.1", METAMAMBA),
    "dmm-dl": Published("98.6; 95.9", METAMAMBA),
    "ad": Published("72.58; 91.32", IN_CONTEXT),
    "ad-mamba": Published("73.65; 82.65", IN_CONTEXT),
    "dmh": Published("83.15 ± 0.63; 98.36 ± 0.51", IN_CONTEXT),
}

_FORM = "which form is not told"
PUBLISHED_VARIANTS = {
    ("dt", "attention-ssm"): "hopper-medium 83.6 (68.4), -replay 90.3 (82.5)",
    ("dmm-dc", "no-input-mixer"): "hopper-medium 88.3 (96.5), walker2d-medium 77.3 (82.2), antmaze-umaze 68 (82)",
    ("dmm-dl", "no-input-mixer"): "hopper-medium 89.5 (98.6), walker2d-medium 78.6 (81.4), antmaze-umaze 66 (80)",
    ("dmm-dc", "no-modality-split"): "hopper-medium 93.7 (96.5), walker2d-medium 80.9 (82.2)",
    ("dmm-dl", "no-modality-split"): "hopper-medium 94.4 (98.6), walker2d-medium 81.2 (81.4)",
    ("dmm-dl", "width-128"): "hopper-medium 97.1 (96.2), walker2d-medium 79.7 (81.3), halfcheetah-medium 43.1 (43.0)",
    ("dmm-c", "gelu"): f"antmaze-umaze 82.4 (85.0), -diverse 78 (81); {_FORM}",
}
"""(recipe, variant) -> the paper's score with it, and in brackets without; chosen as the recipe's own."""


def write_page(page: str) -> str:
    """The page with its tables made anew, between their marks; the text stays."""
    command = "python results/models_page.py"
    page = replace_marked(page, "recipes", command, recipes_table(), PAGE.name)
    page = replace_marked(page, "variants", command, variants_table(), PAGE.name)
    return replace_marked(page, "comparison", command, comparison_table(), PAGE.name)


def recipes_table() -> str:
    """One row per recipe."""
    head = ("recipe", "paper", "in our parts", "parameters", "our score", "the paper's score", "how that was chosen")
    lines, scored = [], lines_of(read_rows(GRID))
    for name, build in RECIPES.items():
        chosen, published = build(), PUBLISHED.get(name, Published("-", "-"))
        cells = (parts(chosen.model), f"{parameter_count(name, *HOPPER):,}", _our_score(scored, name), *published)
        lines.append([f"`{name}`", chosen.paper, *cells, departures(build)])
    return _table([*head, "departures from the paper"], lines)


def variants_table() -> str:
    """One row per variant."""
    head = ("variant", "changes", "parameters", "our score", "the paper's score, and without the change")
    lines, scored = [], lines_of(read_rows(VARIANTS))
    for name, variants in ABLATIONS.items():
        for variant, changes in variants.items():
            assert recipe(name, **changes)
            settings = ", ".join(f"`{key}={_written(value)}`" for key, value in changes.items())
            count = f"{parameter_count(name, *HOPPER, **changes):,}"
            ours = _our_score(scored, f"{name}+{variant}", name)
            published = PUBLISHED_VARIANTS.get((name, variant), "-")
            lines.append([f"{name}: `{variant}`", settings, count, ours, published])
    return _table(head, lines)


CLAIMED = ("dmm-c", "dmm-l", "dmm-dc", "dmm-dl", "dmm26", "mambadm")
BASELINES = ("dt", "dm", "dc", "bc", "bc10")


def comparison_table() -> str:
    """How far what the papers propose is ahead of what they compare with, in pairs of the same task and seed."""
    scored = lines_of(read_rows(GRID))
    found = {name: _by_pair(scored, name) for name in (*CLAIMED, *BASELINES)}
    lines = [[f"`{name}`", *(_ahead(found[name], found[other]) for other in BASELINES)] for name in CLAIMED]
    return _table(["", *(f"less `{name}`" for name in BASELINES)], lines)


def _by_pair(lines: Sequence[Line], name: str) -> dict[tuple[str, int], float]:
    """Last scores by task and seed."""
    return {
        (line.keys[1], seed): float(score)
        for line, cell in _cells(lines, name)
        for seed, score in zip(line.seeds, cell.scores[:, 0], strict=True)
    }


def _ahead(ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]) -> str:
    """The mean difference, its interval over pairs, and how many of them are above zero."""
    apart = [score - theirs[pair] for pair, score in ours.items() if pair in theirs]
    if not apart:
        return "-"
    above = f"{sum(value > 0 for value in apart)} of {len(apart)}"
    return f"{sum(apart) / len(apart):+.1f} ({interval_cell(apart, 0)}; {above})"


def parts(model: ModelConfig) -> str:
    """The pattern, and every setting that is not what `ModelConfig` has by default."""
    plain = asdict(ModelConfig())
    idle = ("pattern", "reference_extras", "max_length")
    values = {"width": model.width, "context": model.context}
    values |= {key: value for key, value in asdict(model).items() if value != plain[key] and key not in idle}
    return f"`{model.pattern}`; " + ", ".join(f"{key} {_written(value)}" for key, value in values.items())


def departures(build: Callable[[], Recipe]) -> str:
    """What a recipe's docstring says behind "Departures:"."""
    text = " ".join((build.__doc__ or "").split())
    found = re.search(r"Departures: (.*?)(?: Reference: .*)?$", text)
    if found is None:
        return "-"
    said = re.sub(r"^those above[;.]? ?", "", found[1])
    said = re.sub(r"`(\w+)`", lambda word: f"`{word[1].replace('_', '-')}`" if _is_recipe(word[1]) else word[0], said)
    return (said[:1].upper() + said[1:]) or "-"


def _is_recipe(function: str) -> bool:
    return function.replace("_", "-") in RECIPES


def _our_score(lines: Sequence[Line], name: str, without: str | None = None) -> str:
    """Last checkpoints of a recipe or variant on every task of its grid, and the mean of the same seeds `without` a
    variant's change."""
    plain = {line.keys[1]: (line, cell) for line, cell in _cells(lines, without)}
    shown = []
    for line, cell in _cells(lines, name):
        task, interval = line.keys[1], cell.interval
        spread = "1 seed" if interval is None else f"{interval[0]:.0f} to {interval[1]:.0f}, {len(line.seeds)} seeds"
        base = _mean_of_seeds(*plain[task], line.seeds) if task in plain else None
        beside = "" if base is None else f"; without {base:.1f}"
        shown.append(f"{task} {cell.mean:.1f} ({spread}{beside})")
    return "; ".join(shown) or "-"


def _mean_of_seeds(line: Line, cell: Cell, seeds: Sequence[int]) -> float | None:
    """The mean over these seeds; `None` if there is one it has not been run with."""
    if not set(seeds) <= set(line.seeds):
        return None
    return float(cell.scores[[line.seeds.index(seed) for seed in seeds]].mean())


def _cells(lines: Sequence[Line], name: str | None) -> list[tuple[Line, Cell]]:
    """Lines of single tasks, each with its last checkpoints."""
    mine = [line for line in lines if (line.keys[0], line.keys[2]) == (name, BUDGET) and line.about]
    return [(line, cell) for line in mine if (cell := line.cells["last"]) is not None]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


if __name__ == "__main__":
    PAGE.write_text(write_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
