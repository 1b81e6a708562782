"""The reports of the grids are those of their rows."""

from pathlib import Path

import pytest

from scanrl.cli import main
from scanrl.grid.reading import read_grid
from scanrl.nn import MIXERS
from scanrl.nn.mixer import parse_pattern

RESULTS = Path(__file__).parents[2] / "results"
GRIDS = sorted(rows.parent for rows in RESULTS.glob("*/rows.jsonl"))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_the_committed_report_is_that_of_the_rows(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (RESULTS / f"{grid.name}.yaml").is_file()
    assert main(["bench", "report", str(grid), "--layout", "markdown"]) == 0
    page = (RESULTS / f"{grid.name}.md").read_text(encoding="utf-8")
    assert page == capsys.readouterr().out, f"run: scanrl bench report results/{grid.name} --layout markdown"


def test_there_are_grids() -> None:
    assert GRIDS


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_run_of_a_grid_is_one_that_can_be_made(file: Path) -> None:
    jobs = read_grid(file).jobs()
    assert len({job.id for job in jobs}) == len(jobs) > 0
    for pattern in {job.config(1).model.pattern for job in jobs}:
        assert parse_pattern(pattern, tuple(MIXERS))
