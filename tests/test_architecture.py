"""Who may import whom, read from the source of every module, and how long files and functions may get.

Imports inside functions count like those at the top. Imports under `TYPE_CHECKING` do not: they name types for
annotations and never run, so they cannot tie one layer to another at run time.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scanrl"

# Highest first. A module imports from layers below its own; the parts of one layer do not know each other. A folder is
# one part: its modules may import each other as long as there is no circle.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"verbs"},
    {"scanrl"},  # the front door: lazy, so that only annotations look upwards
    {"analysis", "bench", "demo", "doctor", "grid"},
    {"collecting", "scoring", "report"},
    {"training"},
    {"loop"},
    {"seeds", "stacked"},
    {"learner"},
    {"run"},
    {"optimizer", "preflight", "presets"},
    {"settings"},
    {"in_context"},
    {"evaluation"},
    {"learned", "rollout"},
    {"policy"},
    {"recall"},
    {"streams"},
    {"checkpoint"},
    {"models", "data", "envs"},
    {"nn"},
    {"kernels"},
    {
        *("arguments", "batch", "config", "console", "failures", "folder"),
        *("graphs", "intervals", "randomness", "signals", "spaces", "stats", "structure"),
    },
    {"types"},
]

# What the order alone would allow and the design does not: (importer, imported, why).
FORBIDDEN = [
    ("data", "nn", "they meet only in Batch"),
    ("data", "kernels", "data computes nothing"),
    ("envs", "nn", "environments know no networks"),
    ("envs", "kernels", "environments know no networks"),
    ("models", "folder", "models know no files"),
    ("nn", "folder", "networks know no files"),
    ("rollout", "policy", "anything that acts can be rolled out"),
    ("evaluation", "policy", "anything that acts can be scored"),
]

# Libraries through which a module would touch files.
FILES = {"h5py", "io", "json", "os", "pathlib", "safetensors", "shutil", "tempfile", "yaml", "zipfile"}

NO_TORCH = [
    *("scanrl", "scanrl.types", "scanrl.stats", "scanrl.intervals", "scanrl.config", "scanrl.folder", "scanrl.console"),
    *("scanrl.spaces", "scanrl.structure"),
    *(
        "scanrl.envs",
        "scanrl.envs.make",
        "scanrl.envs.atari",
        "scanrl.envs.reference_scores",
        "scanrl.rollout",
        "scanrl.evaluation",
    ),
    *(
        "scanrl.data",
        "scanrl.data.d4rl",
        "scanrl.data.minari",
        "scanrl.data.npz",
        "scanrl.data.atari",
        "scanrl.data.store",
    ),
    *(
        "scanrl.envs.sources",
        "scanrl.envs.task_env",
        "scanrl.envs.darkroom",
        "scanrl.envs.keydoor",
        "scanrl.envs.tmaze",
    ),
    *("scanrl.data.subgoals", "scanrl.learned", "scanrl.in_context"),
    *("scanrl.data.dataset", "scanrl.data.columns", "scanrl.data.validate", "scanrl.data.isolate", "scanrl.report"),
]

MOST_LINES_OF_A_FILE = 400
# Files that are longer for a reason, and how long they may get.
MOST_LINES_OF_A_FUNCTION = 60


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def part(module: str) -> str:
    """`scanrl.data.store` -> `data`; the front door is `scanrl`."""
    return module.split(".")[1] if "." in module else module


def level(module: str) -> int:
    """Place in `LAYERS`, 0 at the top."""
    return next(i for i, layer in enumerate(LAYERS) if part(module) in layer)


class Imports(ast.NodeVisitor):
    """Dotted names of everything a module imports when it, or one of its functions, runs."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"line {node.lineno}: expected an absolute import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            # The compiled extension has no source here; it imports nothing.
            known = inner in sources() or alias.name == "_native"
            self.names.add(inner if known else str(node.module))


@cache
def imports(module: str) -> frozenset[str]:
    visitor = Imports()
    visitor.visit(sources()[module])
    return frozenset(visitor.names)


@cache
def edges(module: str) -> frozenset[str]:
    """Modules of the package that `module` imports."""
    return frozenset(name for name in imports(module) if name in sources())


@pytest.mark.parametrize("module", sources())
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    for other in edges(module):
        inside = part(module) == part(other)
        assert inside or level(other) > level(module), f"{module} imports {other}, which is no layer below"


@pytest.mark.parametrize(("importer", "imported", "why"), FORBIDDEN)
def test_parts_that_must_not_know_each_other_do_not(importer: str, imported: str, why: str) -> None:
    for module in sources():
        if part(module) == importer:
            wrong = [other for other in edges(module) if part(other) == imported]
            assert not wrong, f"{module} imports {wrong}: {why}"


def test_models_and_networks_touch_no_files() -> None:
    for module in sources():
        if part(module) in ("models", "nn"):
            wrong = {name for name in imports(module) if name.split(".")[0] in FILES}
            assert not wrong, f"{module} imports {sorted(wrong)}: networks know no files"


def test_no_module_imports_itself_by_a_detour() -> None:
    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(edges(module)):
                walk(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in sources():
        walk(module, ())


def reached(module: str) -> set[str]:
    """Everything imported along with `module`: a submodule runs the `__init__` of its packages first."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in sources():
            waiting += [*imports(name), *([name.rpartition(".")[0]] if "." in name else [])]
    return seen


@pytest.mark.parametrize("module", NO_TORCH)
def test_data_environments_and_scores_need_no_torch(module: str) -> None:
    assert "torch" not in {name.split(".")[0] for name in reached(module)}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "gymnasium", "mujoco", "triton", "h5py", "matplotlib", "minari", "tensorboard", "rich"]
    assert run_python(f"import sys, scanrl; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_loading_and_scoring_import_no_reader_and_no_simulator() -> None:
    heavy = ["torch", "mujoco", "h5py", "matplotlib", "minari", "tensorboard"]
    code = f"import sys, scanrl; scanrl.load, scanrl.evaluate; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("module", sources())
def test_files_and_functions_stay_short(module: str) -> None:
    tree = sources()[module]
    lines = max((node.end_lineno or 0 for node in ast.walk(tree) if isinstance(node, ast.stmt)), default=0)
    assert lines <= MOST_LINES_OF_A_FILE, f"{module}: {lines} lines: which part of it is a module of its own?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{module}.{node.name}: {length} lines: expected two functions"


def test_every_layer_and_rule_names_something_that_exists() -> None:
    parts = {part(module) for module in sources()}
    named = [name for layer in LAYERS for name in layer]
    assert sorted(named) == sorted(parts)
    assert {name for rule in FORBIDDEN for name in rule[:2]} <= parts
    assert set(NO_TORCH) <= set(sources())


def test_no_module_is_named_like_a_public_function() -> None:
    # A submodule becomes an attribute of the package as soon as it is imported, and would replace the function.
    import scanrl

    clashing = {name for name in sources() if name.count(".") == 1} & {f"scanrl.{name}" for name in scanrl.__all__}
    assert not clashing
