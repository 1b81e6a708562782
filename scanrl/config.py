"""Typed configuration: dataclasses to and from plain values and YAML, with dotted overrides and hints for typos.

Every error names the dotted key, what was expected and what was found.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from scanrl.types import DataError

__all__ = ["from_values", "override", "read_yaml", "to_values", "to_yaml"]

T = TypeVar("T")


def to_values(config: Any) -> dict[str, Any]:
    """A dataclass as nested dictionaries of plain values (tuples become lists)."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """The same as YAML text, fields in their order."""
    return yaml.safe_dump(to_values(config), sort_keys=False, width=100)


def from_values(kind: type[T], values: Mapping[str, Any], base: T | None = None, where: str = "") -> T:
    """Build the dataclass `kind` from nested values; fields not given come from `base`, else from their defaults.

    Raises:
        DataError: an unknown key (with the nearest known one), a wrong type, or a value the dataclass refuses.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    given: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{where}{key}"
        if key not in fields:
            raise DataError(f"{dotted}: expected one of {', '.join(fields)}, got {key!r}{_hint(str(key), fields)}")
        nested = getattr(base, key, None)
        given[key] = _checked(hints[key], value, dotted, nested)
    if base is not None:
        return dataclasses.replace(base, **given)  # type: ignore[type-var]
    missing = [n for n, f in fields.items() if n not in given and _required(f)]
    if missing:
        raise DataError(f"{where}{missing[0]}: expected a value, got none")
    return kind(**given)


def override(config: T, changes: Mapping[str, Any]) -> T:
    """A copy with dotted keys replaced, e.g. `{"model.width": 128, "train.seed": 1}`. Raises as `from_values`."""
    nested: dict[str, Any] = {}
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise DataError(f"{dotted}: expected one value for {parent}, got two")
        inner[last] = value
    return from_values(type(config), nested, config)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read without any object construction.

    Raises:
        DataError: the file is missing, is not YAML, uses tags, says a key twice, or is not a mapping.
    """
    path = Path(path)
    try:
        values = _OneEach(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise DataError(f"{path}: expected a readable YAML file, got: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # impossible dates are a ValueError
        raise DataError(f"{path}: expected plain YAML, got: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


class _OneEach(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_values(value)
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _hint(key: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(key, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _checked(kind: Any, value: Any, where: str, base: Any) -> Any:
    """`value` as the annotated type, or a `DataError` that names `where`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a mapping", value)
        return from_values(typing.cast(type, kind), value, base, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, where, base)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            hint = _hint(str(value), {str(a): a for a in args})
            raise DataError(f"{where}: expected one of {', '.join(map(str, args))}, got {_short(value)}{hint}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _mismatch(where, "a list", value)
        return tuple(_checked(args[0], v, f"{where}[{i}]", None) for i, v in enumerate(value))
    return _scalar(kind, value, where)


def _union(args: tuple[Any, ...], value: Any, where: str, base: Any) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [a for a in args if a is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _checked(kind, value, where, base)
        except DataError:
            continue
    if typing.get_origin(kinds[-1]) is not Literal:
        return _checked(kinds[-1], value, where, base)
    names = typing.get_args(kinds[-1])
    if isinstance(value, str) and value in names:
        return value
    # Of several kinds all are named, not the last alone.
    numbers = {int: "a whole number", float: "a number"}
    wanted = ", ".join([*map(str, names), *(numbers.get(kind, str(kind)) for kind in kinds[:-1])])
    hint = _hint(str(value), {str(name): name for name in names})
    raise DataError(f"{where}: expected one of {wanted}, got {_short(value)}{hint}")


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError):
            raise _mismatch(where, "float", value) from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(where, kind.__name__, value)
    if kind is int and abs(value) >= 1 << 63:
        raise _mismatch(where, "an integer of 64 bits", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _mismatch(where, "a finite number", value)
    return value


def _mismatch(where: str, expected: str, value: Any) -> DataError:
    return DataError(f"{where}: expected {expected}, got {_short(value)}")


def _short(value: Any) -> str:
    """What was found, cut: a small YAML file can mean a value that fills the memory when it is written out."""
    shortener = reprlib.Repr()
    shortener.maxlevel = 2
    shortener.maxstring = shortener.maxother = shortener.maxlong = 80
    return shortener.repr(value)
