"""Recorded episodes: reading them from files and handing them to training as windows.

    dataset = load("d4rl:hopper_medium-v2.hdf5")
    train, held_out = dataset.split(0.1, seed=0)
    batch = WindowSampler(train, context=20, batch_size=64, seed=0).sample()   # from scanrl.data.windows

`FORMATS` lists what `load` reads; a bare path is sniffed by its first bytes. Foreign files are read in a child
process and converted once into our own store (see `isolate.py`, `cache.py`). Importing this package imports neither
torch nor any reader.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scanrl.data.cache import converted
from scanrl.data.dataset import Dataset
from scanrl.data.store import MANIFEST, read_store, write_store
from scanrl.data.validate import check, nonfinite_episodes
from scanrl.stats import Stats
from scanrl.types import DataError

__all__ = ["FORMATS", "Dataset", "Format", "Stats", "check", "load", "parse_uri", "read_store", "write_store"]

_FRAMES = "$store$_observation_ckpt"  # of the four files of a buffer, the one that names it
_log = logging.getLogger("scanrl.data")


class Format(NamedTuple):
    """A kind of file `load` reads.

    Attributes:
        module: imported in the child process only; its `read(path, *, name, limit, **options)` returns a `Dataset`.
            `None` for our own store.
        about: one line for tables and help.
        options: names `load` accepts for it.
        requires: module of an optional dependency, or `None`; the extra has the same name.
    """

    module: str | None
    about: str
    options: tuple[str, ...] = ()
    requires: str | None = None


FORMATS: dict[str, Format] = {
    "d4rl": Format("scanrl.data.d4rl", "D4RL-style HDF5 file with flat columns", ("tail", "env_id")),
    "minari": Format("scanrl.data.minari", "local Minari dataset, by its id", ("observation_keys",), "minari"),
    "dqn-replay": Format(
        "scanrl.data.atari", "DQN Replay Dataset: one gzipped buffer of an Atari game", ("tail", "env_id", "steps")
    ),
    "npz": Format("scanrl.data.npz", "NumPy archive with flat columns", ("tail", "env_id")),
    "store": Format(None, "our own checksummed folder"),
}
"""Formats by URI scheme."""


def load(
    uri: str | Path,
    *,
    cache: str | Path | None = None,
    nonfinite: Literal["error", "drop-episode"] = "error",
    memory_gib: float = 4.0,
    timeout: float | None = None,
    checked: bool = True,
    **options: Any,
) -> Dataset:
    """The dataset named by `uri`, checked; its columns are memory-mapped where possible.

    Args:
        uri: `d4rl:hopper_medium-v2.hdf5`, `minari:mujoco/hopper/medium-v0`, `npz:file`, `store:folder`, or a path.
        cache: folder for conversions, instead of `$XDG_CACHE_HOME/scanrl`.
        nonfinite: what to do about episodes with a NaN or infinite number; dropped ones are counted in the log.
        memory_gib: limit for the process that reads a foreign file; its columns may take three quarters of it.
        timeout: limit for that process in seconds; by default by the size of the file.
        checked: refuse data in which `check` finds a problem; without, only what cannot be read is refused.
        **options: of the format, see `FORMATS` and the `read` of its module.

    Raises:
        DataError: the URI or the data cannot be used. One line, names file and field.
        CorruptFile: a store is not what its manifest says.
    """
    scheme, rest = parse_uri(str(uri))
    _known("option", options, FORMATS[scheme].options, scheme)
    if nonfinite not in ("error", "drop-episode"):
        raise DataError(f"nonfinite: expected error or drop-episode, got {nonfinite!r}")
    if scheme == "store":
        dataset = read_store(rest)
    else:
        dataset = _foreign(scheme, rest, options, cache=cache, memory_gib=memory_gib, timeout=timeout)
    if nonfinite == "drop-episode":
        dataset = _drop_nonfinite(dataset)
    for problem in check(dataset) if checked else []:
        raise DataError(problem)
    return dataset


def _foreign(scheme: str, rest: str, options: dict[str, Any], **limits: Any) -> Dataset:
    kind = FORMATS[scheme]
    if kind.requires is not None and importlib.util.find_spec(kind.requires) is None:
        raise DataError(f"{scheme}:{rest}: expected the package {kind.requires}: pip install 'scanrl[{kind.requires}]'")
    if scheme == "minari":
        source = _minari_folder(rest)
        files, name = sorted(file for file in source.rglob("*") if file.is_file()), rest
    else:
        source = Path(rest)
        files, name = [source], source.name
        if scheme == "dqn-replay":
            files = sorted(source.parent.glob(name.replace(_FRAMES, "$store$_*_ckpt"))) or files
        if not source.is_file():
            raise DataError(f"{rest}: expected a file, got {'a folder' if source.is_dir() else 'none'}")
    assert kind.module is not None
    return converted(kind.module, source, files, uri=f"{scheme}:{name}", name=name, options=options, **limits)


def _minari_folder(dataset_id: str) -> Path:
    """Where the Minari library keeps a local dataset (the same rule, so that it need not be imported here)."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    folder = root / dataset_id / "data"
    if ".." in Path(dataset_id).parts or not folder.is_dir():
        raise DataError(
            f"minari:{dataset_id}: expected a local dataset in {root}, got none (minari download {dataset_id})"
        )
    return folder


def parse_uri(uri: str) -> tuple[str, str]:
    """Format and place that `uri` names; the format of a bare path is sniffed.

    Raises:
        DataError: no such format, or nothing there whose format could be told.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme in FORMATS:
        return scheme, rest
    if os.path.exists(uri):
        return _sniff(Path(uri)), uri
    if colon and scheme.replace("-", "").replace("_", "").isalnum():
        _known("format", [scheme], FORMATS, "load")
    raise DataError(f"{uri}: expected an existing path or <format>:<path> with one of {sorted(FORMATS)}, got neither")


def _sniff(path: Path) -> str:
    if path.is_dir():
        if (path / MANIFEST).exists():
            return "store"
        raise DataError(f"{path}: expected a store (a folder with {MANIFEST}), got another folder")
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] == b"\x1f\x8b" and path.name.startswith(_FRAMES):
        return "dqn-replay"
    if start == b"\x89HDF\r\n\x1a\n":
        return "d4rl"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "npz"
    raise DataError(f"{path}: expected an HDF5 file, an npz archive or a store, got something else")


def _known(what: str, given: Iterable[str], known: Iterable[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(f"{where}: {what}: expected one of {sorted(known)}, got {name!r}{hint}")


def _drop_nonfinite(dataset: Dataset) -> Dataset:
    bad = nonfinite_episodes(dataset)
    if not bad.size:
        return dataset
    _log.warning("%s: dropped %d of %d episodes with a number that is not finite", dataset.name, bad.size, len(dataset))
    kept = [episode for episode in range(len(dataset)) if episode not in set(bad.tolist())]
    return dataset.select(kept)
