"""The README and the pages under docs/ do what they say: their blocks are run, their tables and links are compared.

Blocks are run as they stand, except for the budgets in `SHORTER`: the text shows what a user would ask for, the test
asks for less of the same.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scanrl.cli import main
from scanrl.models.catalogue import catalogue
from scanrl.nn import HEADS, MIXERS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "performance.md")

SHORTER = [
    ("steps=10_000", "steps=10"),
    ("episodes=100", "episodes=2"),
    ("episodes=20", "episodes=2"),
    ("--steps 10000", "--steps 10 --eval.episodes 2 --train.batch-size 8"),
    ("--episodes 100", "--episodes 2"),
    ("bundled()", 'bundled("hopper-replay")'),
    ("scanrl demo", "scanrl demo --seconds 0.5 --episodes 1"),
]
CUT = 2000  # steps of the bundled recording that stand in for a D4RL file


def shorter(text: str) -> str:
    for long, short in SHORTER:
        text = text.replace(long, short)
    return text


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S) if language in languages]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty current directory that holds `hopper_medium-v2.hdf5`, a short stand-in for D4RL's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    with (
        h5py.File(str(files("scanrl") / "bundled" / "hopper-medium.hdf5")) as source,
        h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as target,
    ):
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            target[name] = source[name][:CUT]
    return tmp_path


def run_python(page: Path, names: dict[str, Any]) -> None:
    """All Python blocks of a page, in order, in one namespace; a traceback shows the line of the page."""
    text = page.read_text(encoding="utf-8")
    for code in blocks(page, "python"):
        line = text[: text.index(code)].count("\n")
        exec(compile("\n" * line + shorter(code), str(page), "exec"), names)


def test_the_python_of_the_readme_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What an environment would have told before the first block, which shows the call and not the loop.
    names: dict[str, Any] = {"observation": np.zeros(11, np.float32), "reward": 0.0, "first": True}
    run_python(README, names)
    assert names["action"].shape == (3,)
    assert names["total"] > 0
    assert "episodes=4" in capsys.readouterr().out


def test_the_first_block_of_the_readme_is_the_one_of_the_package() -> None:
    import scanrl

    code = [line.split("#")[0].strip() for line in blocks(README, "python")[0].splitlines()]
    shown = re.findall(r"^    (.+)$", scanrl.__doc__ or "", re.M)
    assert code == shown


def test_the_commands_of_the_readme_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in "".join(blocks(README, "sh", "console")).splitlines():
        words = shlex.split(shorter(line), comments=True)
        if words[:1] == ["scanrl"]:
            assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        else:
            assert words[:2] == ["pip", "install"], f"{line}: expected scanrl or pip install"
    assert (workplace / "outputs/demo/report.html").stat().st_size > 1000
    assert (workplace / "runs/hopper/checkpoints/step-10/manifest.json").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_docs_runs(page: Path, workplace: Path) -> None:
    run_python(page, {})


def test_the_examples_run(workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [
        "own_logs.py --out runs/pendulum --recorded 3 --steps 2 --episodes 1",
        "control_loop.py runs/pendulum --env Pendulum-v1 --streams 3 --ticks 201",
    ]
    for command in commands:
        script, *words = command.split()
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert "3 episodes finished" in capsys.readouterr().out


def test_a_run_folder_holds_what_the_readme_says(workplace: Path) -> None:
    import scanrl

    path = scanrl.train("bc", "d4rl:hopper_medium-v2.hdf5", steps=2, out="run").path
    step = path / "checkpoints" / "step-2"
    [listing] = [block for block in blocks(README, "text") if "config.yaml" in block]
    for place in (path, step):
        for entry in place.iterdir():
            assert entry.name in listing, f"{entry}: expected the README to tell what it is"


def recipe_table() -> str:
    rows = ["| recipe | parameters | window | pattern | paper |", "|---|---:|---:|---|---|"]
    for row in catalogue(11, 3):
        cells = (f"`{row['recipe']}`", f"{row['parameters']:,}", row["context"], f"`{row['pattern']}`", row["paper"])
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def test_the_table_of_recipes_is_what_the_command_lists() -> None:
    shown = README.read_text(encoding="utf-8").split("<!-- recipes -->")[1].split("<!-- /recipes -->")[0].strip()
    assert shown == recipe_table(), f"expected between the marks in README.md:\n{recipe_table()}"


def test_extras_and_make_targets_that_the_text_names_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in [README, ROOT / "CONTRIBUTING.md", *PAGES])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for group in re.findall(r"(?:scanrl|\.)\[([a-z,]+)\]", text):
        assert set(group.split(",")) <= set(extras)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= set(targets)


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}: expected a file"


def test_the_page_of_models_names_no_mixer_or_head_that_is_gone() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for heading, family in (("Mixers", MIXERS), ("Heads", HEADS)):
        section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \|", section, re.M)
        assert rows == list(family)
