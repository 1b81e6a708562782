"""What the package declares about itself: dependencies without caps, files that exist, extras that exist.

`make wheel-test` builds and installs it; these checks are quick.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from scanrl.data import FORMATS
from scanrl.doctor import EXTRAS

ROOT = Path(__file__).parents[1]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = DECLARED["project"]
EVERY_EXTRA = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_a_dependency_has_a_lower_bound_and_no_cap(requirement: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_\-\[\]]+>=[0-9.]+", requirement), requirement


def test_torch_is_taken_from_two_point_five_on() -> None:
    assert "torch>=2.5" in PROJECT["dependencies"]


@pytest.mark.parametrize("extra", sorted(set(EVERY_EXTRA) - {"dev"}))
def test_an_extra_has_lower_bounds_and_no_caps(extra: str) -> None:
    for requirement in EVERY_EXTRA[extra]:
        assert re.fullmatch(r"[A-Za-z0-9_\-\[\],]+>=[0-9.]+", requirement), requirement


def test_the_extras_that_doctor_and_errors_name_exist() -> None:
    assert set(EXTRAS) <= set(EVERY_EXTRA)
    assert {kind.requires for kind in FORMATS.values() if kind.requires} <= set(EVERY_EXTRA)
    for path in (ROOT / "scanrl").rglob("*.py"):
        named = re.findall(r"pip install 'scanrl\[(\w+)\]'", path.read_text(encoding="utf-8"))
        assert set(named) <= set(EVERY_EXTRA), path


def test_every_module_outside_is_a_declared_dependency() -> None:
    names = {"yaml": "PyYAML", "ale_py": "ale-py"}
    declared = {re.split(r"[\[>=]", text)[0].lower() for text in PROJECT["dependencies"]}
    declared |= {re.split(r"[\[>=]", text)[0].lower() for extra in EVERY_EXTRA.values() for text in extra}
    for path in (ROOT / "scanrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            for module in {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"scanrl"}:
                assert names.get(module, module).lower() in declared, f"{path.name} imports {module}"


@pytest.mark.parametrize("pattern", DECLARED["tool"]["setuptools"]["package-data"]["scanrl"])
def test_a_pattern_of_package_data_matches_files(pattern: str) -> None:
    assert list((ROOT / "scanrl").glob(pattern))


def test_files_that_are_no_python_belong_to_the_package_data() -> None:
    patterns = DECLARED["tool"]["setuptools"]["package-data"]["scanrl"]
    covered = {path for pattern in patterns for path in (ROOT / "scanrl").glob(pattern)}
    left_out = {"__pycache__", "_native"}
    for path in (ROOT / "scanrl").rglob("*"):
        if path.is_file() and path.suffix != ".py" and not any(name in str(path) for name in left_out):
            assert path in covered, f"{path.relative_to(ROOT)}: expected a pattern in package-data"


def test_the_extension_is_optional_and_its_sources_exist() -> None:
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert "optional=True" in source
    stems = {path.stem for path in (ROOT / "scanrl/kernels/csrc").iterdir() if path.suffix in (".c", ".h")}
    assert all(f'"{stem}"' in source for stem in stems)


def test_the_command_and_the_markers_are_declared() -> None:
    assert PROJECT["scripts"] == {"scanrl": "scanrl.cli:main"}
    assert PROJECT["readme"] == "README.md"
    assert (ROOT / PROJECT["readme"]).exists()
    assert all((ROOT / name).exists() for name in PROJECT["license-files"])
    assert [text.split(":")[0] for text in DECLARED["tool"]["pytest"]["ini_options"]["markers"]] == ["slow", "gpu"]
