import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scanrl.config import from_values, override, read_yaml, to_values, to_yaml
from scanrl.models.recipes import RECIPES
from scanrl.nn import ModelConfig
from scanrl.settings import EvalConfig, RunConfig, TrainConfig, run_config
from scanrl.types import DataError


@dataclass(frozen=True)
class Inner:
    size: int = 3
    rate: float = 0.5
    kind: Literal["a", "bb"] = "a"
    goals: tuple[float, ...] = ()
    memory: int | Literal["all"] = "all"
    on: bool = False


@dataclass(frozen=True)
class Outer:
    name: str
    note: str | None = None
    inner: Inner = field(default_factory=Inner)


BASE = Outer("x")


def test_values_and_yaml_come_back(tmp_path):
    config = Outer("x", "ä: #", Inner(4, 1e-7, "bb", (1.0, -2.5), 8, True))
    assert from_values(Outer, to_values(config)) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_values(Outer, read_yaml(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_run_comes_back_from_yaml(tmp_path, name):
    config = run_config(name, {"eval.targets": [3600, 1.5], "env": "Hopper-v5", "train.weight_decay": 1e-9})
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_values(RunConfig, read_yaml(tmp_path / "config.yaml")) == config


def test_what_is_not_given_comes_from_the_base():
    base = Outer("x", "y", Inner(7, kind="bb"))
    changed = from_values(Outer, {"inner": {"rate": "1e-3"}}, base)
    assert changed == Outer("x", "y", Inner(7, 0.001, "bb"))
    assert override(base, {"inner.size": 9, "note": None}) == Outer("x", None, Inner(9, kind="bb"))
    assert base.inner.size == 7


@pytest.mark.parametrize(
    "values, message",
    [
        ({"nmae": 1}, r"^nmae: expected one of name, note, inner, got 'nmae' \(did you mean 'name'\?\)$"),
        ({"inner": {"siez": 1}}, r"^inner.siez: expected one of size, .*got 'siez' \(did you mean 'size'\?\)$"),
        ({3: 1}, r"^3: expected one of name"),
        ({None: 1}, r"^None: expected one of name"),
        ({"name": 3}, r"^name: expected str, got 3$"),
        ({"inner": 3}, r"^inner: expected a mapping, got 3$"),
        ({"inner": None}, r"^inner: expected a mapping, got None$"),
        ({"inner": {"size": 1.5}}, r"^inner.size: expected int, got 1.5$"),
        ({"inner": {"size": "4"}}, r"^inner.size: expected int, got '4'$"),
        ({"inner": {"size": True}}, r"^inner.size: expected int, got True$"),
        ({"inner": {"rate": "fast"}}, r"^inner.rate: expected float, got 'fast'$"),
        ({"inner": {"rate": False}}, r"^inner.rate: expected float, got False$"),
        ({"inner": {"rate": 10**400}}, r"^inner.rate: expected float, got 1000"),
        ({"inner": {"rate": math.nan}}, r"^inner.rate: expected a finite number, got nan$"),
        ({"inner": {"rate": "-inf"}}, r"^inner.rate: expected a finite number, got -inf$"),
        ({"inner": {"kind": "b"}}, r"^inner.kind: expected one of a, bb, got 'b' \(did you mean 'bb'\?\)$"),
        ({"inner": {"kind": ["a"]}}, r"^inner.kind: expected one of a, bb, got \['a'\]$"),
        ({"inner": {"goals": 3}}, r"^inner.goals: expected a list, got 3$"),
        ({"inner": {"goals": [1, "x"]}}, r"^inner.goals\[1\]: expected float, got 'x'$"),
        ({"inner": {"memory": "some"}}, r"^inner.memory: expected one of all, a whole number, got 'some'$"),
        ({"inner": {"on": 1}}, r"^inner.on: expected bool, got 1$"),
    ],
)
def test_an_error_names_the_key_what_was_expected_and_what_was_found(values, message):
    with pytest.raises(DataError, match=message):
        from_values(Outer, values, BASE)


def test_a_missing_value_is_named():
    with pytest.raises(DataError, match=r"^name: expected a value, got none$"):
        from_values(Outer, {})


@pytest.mark.parametrize("changes", [{"name": 1, "name.x": 2}, {"inner.size": 1, "inner.size.x": 2}, {"": 1}, {".": 1}])
def test_dotted_keys_that_contradict_each_other_are_refused(changes):
    with pytest.raises(DataError, match=r"expected"):
        override(BASE, changes)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {0}']",
        "name: !!python/object/new:subprocess.Popen [['touch', '{0}']]",
        "!!python/name:os.system",
        "name: !custom x",
        "[" * 5000,
        "a: [",
        "when: 2020-99-99",
        "\0",
        "- a\n- b",
        "3",
        "name: &a [*a",
    ],
)
def test_yaml_with_tags_or_without_a_mapping_is_refused(tmp_path, text):
    file, sentinel = tmp_path / "c.yaml", tmp_path / "sentinel"
    file.write_text(text.replace("{0}", str(sentinel)))
    with pytest.raises(DataError, match=rf"^{file}: expected .*, got") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)
    assert not sentinel.exists()


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "c.yaml", tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=rf"^{path}: expected"):
            read_yaml(path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_a_small_file_that_means_a_huge_value_gives_a_short_error(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "name: *a11"]))
    with pytest.raises(DataError) as caught:
        from_values(Outer, {"name": read_yaml(tmp_path / "bomb.yaml")["name"]})
    assert str(caught.value).startswith("name: expected str, got [")
    assert len(str(caught.value)) < 4000


# The settings of a run


SECTIONS = {"train": TrainConfig, "eval": EvalConfig, "model": ModelConfig}
NUMBERS = [
    f"{section}.{name}"
    for section, kind in SECTIONS.items()
    for name, hint in typing.get_type_hints(kind).items()
    if hint in (int, float) or int in typing.get_args(hint) or float in typing.get_args(hint)
]
ODD = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, "nan", "inf", "x", "", None, [], {}, [[]], True, 10**400, -0.0]),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=2),
)


def numbers(value):
    return [x for v in value for x in numbers(v)] if isinstance(value, tuple) else [value]


def attempt(make, *arguments, **options):
    """What was made, or the error's text."""
    try:
        return make(*arguments, **options), ""
    except DataError as error:
        return None, str(error)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from(NUMBERS), ODD)
def test_no_number_of_the_settings_can_be_negative_infinite_or_of_another_type(key, value):
    section, name = key.split(".")
    config, error = attempt(run_config, "dmm-dc", {key: value})
    if config is None:
        assert key in error or f"{section}.heads" in error, "the message names the key"
        assert "\n" not in error
        return
    for found in numbers(getattr(getattr(config, section), name)):
        if found == "recurrent":
            continue
        assert isinstance(found, int | float)
        assert not isinstance(found, bool)
        assert math.isfinite(found)
        assert found >= {"targets": -math.inf, "every": -1}.get(name, 0)


@settings(max_examples=500, deadline=None, derandomize=True)
@example("eval.context", math.inf)
@example("eval.context", 1.5)
@example("eval.seed", 2**63)
@example("eval.every", -1.0)  # never
@given(st.sampled_from([k for k in NUMBERS if not k.startswith("model.")]), st.floats() | st.integers(-9, 2**70))
def test_settings_made_in_python_are_checked_as_well(key, value):
    section, name = key.split(".")
    hint = typing.get_type_hints(SECTIONS[section])[name]
    given_value = (value,) if name == "targets" else int(value) if hint is int and math.isfinite(value) else value
    config, error = attempt(SECTIONS[section], **{name: given_value})
    if config is None:
        assert error.startswith(f"{key}: expected")
        return
    found = getattr(config, name)
    lowest = {"targets": -math.inf, "every": -1}.get(name, 0)
    assert all(x == "recurrent" or (math.isfinite(x) and x >= lowest) for x in numbers(found))
    assert name != "context" or isinstance(found, int)


def test_later_changes_win_and_dotted_ones_reach_inside():
    config = run_config(
        "dt",
        {"train": {"steps": 5, "seed": 3}, "env": "A-v0"},
        {"train.steps": 6, "model.width": 32},
        {"train": {"batch_size": 2}},
    )
    assert (config.train.steps, config.train.seed, config.train.batch_size, config.env) == (6, 3, 2, "A-v0")
    assert config.model == dataclasses.replace(run_config("dt").model, width=32)


def test_settings_of_another_recipe_are_refused():
    assert run_config("dt", {"recipe": "dt"}).recipe == "dt"
    with pytest.raises(DataError, match=r"^recipe: expected 'dt', got settings of 'bc'$"):
        run_config("dt", to_values(run_config("bc")))
    with pytest.raises(DataError, match=r"^recipe: expected one of dt, .*got 'dtt' \(did you mean 'dt'\?\)$"):
        run_config("dtt")
