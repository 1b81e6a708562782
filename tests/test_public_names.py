"""The public surface: every name is there, is documented, and every member of a family has its row in the docs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import scanrl
from scanrl.data import FORMATS
from scanrl.doctor import EXTRAS
from scanrl.envs import MAZES
from scanrl.models.recipes import RECIPES
from scanrl.nn import HEADS, MIXERS

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    info.name for info in pkgutil.walk_packages(scanrl.__path__, "scanrl.") if not info.name.endswith("._native")
)


@pytest.mark.parametrize("name", scanrl.__all__)
def test_a_public_name_is_there_and_is_documented(name: str) -> None:
    value = getattr(scanrl, name)
    if name != "__version__":
        assert inspect.getdoc(value), f"scanrl.{name}: expected a docstring"
        assert not inspect.ismodule(value)


@pytest.mark.parametrize("name", [name for name in scanrl.__all__ if name != "__version__"])
def test_public_methods_are_documented(name: str) -> None:
    value = getattr(scanrl, name)
    if inspect.isclass(value) and value.__module__.startswith("scanrl"):
        for method, function in vars(value).items():
            if not method.startswith("_") and inspect.isroutine(inspect.unwrap(function)):
                assert inspect.getdoc(getattr(value, method)), f"scanrl.{name}.{method}: expected a docstring"


def test_dir_lists_what_is_public() -> None:
    assert set(scanrl.__all__) <= set(dir(scanrl))
    assert scanrl.__all__ == sorted(scanrl.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        scanrl.lode  # noqa: B018


def test_a_public_function_stays_a_function_after_its_module_was_imported() -> None:
    for module in MODULES:
        importlib.import_module(module)
    for name in ("train", "evaluate", "load", "resume"):
        assert inspect.isfunction(getattr(scanrl, name))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_keeps_what_it_announces(module: str) -> None:
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", []):
        assert hasattr(found, name), f"{module}.__all__: {name!r} does not exist"


def test_names_come_from_one_place() -> None:
    # The names type checkers see, under TYPE_CHECKING, are those that are looked up when first used.
    source = inspect.getsource(scanrl)
    checked = set(re.findall(r"\b\w+\b", " ".join(re.findall(r"^    from scanrl\.\w+ import (.+)$", source, re.M))))
    assert checked == set(scanrl.__all__) - {"__version__"} == set(scanrl._HOMES)


def table_rows(page: str) -> set[str]:
    """What stands in code quotes in the first column of the tables of a page under docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {name for cell in re.findall(r"^\| (`[^|]+`) \|", text, re.M) for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("page", "family"),
    [
        ("models.md", RECIPES),
        ("models.md", MIXERS),
        ("models.md", HEADS),
        ("data.md", FORMATS),
        ("index.md", EXTRAS),
        ("evaluation.md", MAZES),
    ],
    ids=["recipes", "mixers", "heads", "formats", "extras", "mazes"],
)
def test_every_member_of_a_family_has_a_row_in_the_docs(page: str, family: dict[str, object]) -> None:
    missing = sorted(set(family) - table_rows(page))
    assert not missing, f"docs/{page}: expected a table row for each of {missing}"
