"""A grid that ran through."""

import pytest

from scanrl.grid.schedule import run_grid
from tests.grid.grids import grid, quiet


@pytest.fixture(scope="package")
def uninterrupted(tmp_path_factory):
    """A grid that ran through; nobody changes it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_grid(grid(folder), folder / "grid", tell=quiet)
    return folder / "grid"
