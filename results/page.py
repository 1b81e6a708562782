"""`docs/performance.md` from the rows of `results/speed.jsonl` and the text of `results/performance.md.jinja`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from results.targets import TARGETS, Rows, verdict

__all__ = ["write_page"]

TEMPLATE = Path(__file__).with_name("performance.md.jinja")
VARIANTS = ("speed", "speed avx2", "speed portable", "speed reference")


def write_page(rows: Sequence[dict[str, Any]], commands: Mapping[str, str]) -> str:
    """The page; `commands` tells how each benchmark is run that has no rows."""
    page = _Page(rows, commands)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    names = ("command", "limits", "machine", "ms", "note", "table", "targets", "times", "variants")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render({name: getattr(page, name) for name in names}).rstrip() + "\n"


class _Page:
    """What the template asks for; everything is Markdown."""

    def __init__(self, rows: Sequence[dict[str, Any]], commands: Mapping[str, str]) -> None:
        self.rows, self.found = rows, Rows(rows)
        self.commands = dict(commands) | {row["benchmark"]: row["command"] for row in rows if row.get("case") == "run"}

    def command(self, benchmark: str) -> str:
        return f"`{self.commands[benchmark]}`"

    def machine(self) -> str:
        """Processor, kernels and versions."""
        [at] = [row for row in self.rows if row["benchmark"] == "machine"]
        numbers = ", ".join(f"{name} {number}" for name, number in at["versions"].items() if number)
        return f"{at['processor']}, {at['cores']} cores, kernels {at['kernels']}; {numbers}; revision {at['revision']}"

    def note(self) -> str:
        """A warning where a run was short or the machine busy."""
        runs = [row for row in self.rows if row.get("case") == "run"]
        shaky = [row for row in runs if row["provisional"]]
        failed = [f"{row['benchmark']} ({row['failed']})" for row in runs if "failed" in row]
        missing = [name for name in self.commands if name not in {row["benchmark"] for row in runs}]
        lines = []
        if shaky:
            most = max(row["others"] for row in shaky)
            names = "every benchmark" if len(shaky) == len(runs) else ", ".join(row["benchmark"] for row in shaky)
            lines.append(
                f"**Provisional:** short runs, or a machine busy with other work (up to {most:.1f} processors), in "
                f"{names}. These are no results; ratios may be off by tens of per cent."
            )
        if failed or missing:
            lines.append(f"Without rows: {', '.join([*failed, *missing])}.")
        return "\n\n".join(lines)

    def ms(self, benchmark: str, case: str, impl: str, field: str = "median_ms") -> str:
        """A time of the first row that matches, for the text."""
        return _cell(self.found.value(benchmark, field, case=case, impl=impl))

    def times(self, benchmark: str, case: str, impl: str, than: str) -> str:
        """How many times faster `impl` is than another, for the text."""
        return _cell(self.found.faster(benchmark, case, impl, than))

    def table(self, benchmark: str, *columns: str, **match: Any) -> str:
        """Rows of a benchmark, and the command that makes them."""
        chosen = [r for r in self.found.of(benchmark) if all(r.get(key) == value for key, value in match.items())]
        if not chosen:
            return f"{self.command(benchmark)}: no rows."
        return f"{self.command(benchmark)}\n\n" + _table(columns, [[row.get(c) for c in columns] for row in chosen])

    def limits(self) -> str:
        """A limit per line, one thread beside all."""
        rows = [row for row in self.found.of("limits") if row["case"] == "limit"]
        counts = sorted({row["threads"] for row in rows})
        lines = []
        for name in dict.fromkeys(row["impl"] for row in rows):
            same = {row["threads"]: row for row in rows if row["impl"] == name}
            any_row = next(iter(same.values()))
            cells = [same[count]["rate"] if count in same else None for count in counts]
            lines.append([name, *cells, any_row["unit"], any_row["how"]])
        heads = [f"{count} thread" + "s" * (count > 1) for count in counts]
        return f"{self.command('limits')}\n\n" + _table(["limit", *heads, "unit", "measured as"], lines)

    def variants(self) -> str:
        """Medians of the short benchmarks: with the best kernels, with lesser ones, and without the extension."""
        base = self.found.of("speed")
        keys = dict.fromkeys((row["case"], row["shape"], row["impl"]) for row in base if row["case"] != "limit")
        lines = []
        for case, shape, impl in keys:
            match = {"case": case, "shape": shape, "impl": impl}
            lines.append([case, shape, impl, *(self.found.value(name, "median_ms", **match) for name in VARIANTS)])
        commands = "\n".join(f"* {self.command(name)}" for name in VARIANTS)
        heads = ("AVX-512", "AVX2", "portable", "no extension") if lines else ()
        return f"{commands}\n\n" + _table(["what", "shape", "how", *heads], lines)

    def targets(self) -> str:
        """Every target with what was found."""
        lines = []
        for target in TARGETS:
            wanted = f"{target.sign} {target.goal:g}{target.unit}"
            lines.append([target.area, target.what, wanted, *verdict(target, self.found)])
        return _table(["area", "quantity", "target", "found", ""], lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
