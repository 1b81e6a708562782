"""Local Minari datasets, through the Minari library (`pip install 'scanrl[minari]'`). Nothing is downloaded.

Minari checks little on reading, so lengths, shapes and counts are compared here, by episode. This module runs in the
reading child process (`scanrl.data.isolate`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scanrl.data.d4rl import declare, local_dataset
from scanrl.data.dataset import Dataset
from scanrl.types import DataError, Spec, Trajectory

__all__ = ["read"]

_MAIN = "main_data.hdf5"
_METADATA_LIMIT = 1 << 24


def read(path: Path, *, name: str, limit: int, observation_keys: list[str] | None = None) -> Dataset:
    """All episodes; the observation after the last action, which Minari keeps, is left out.

    Args:
        path: the `data` folder of a local dataset.
        name: the dataset's id, for the errors.
        limit: bytes the columns may take; compared with the declared sizes before anything is allocated.
        observation_keys: entries of a dictionary observation to join into one vector, in this order.

    Raises:
        DataError: metadata and data disagree, or an episode has arrays of unequal length or shape.
    """
    metadata = _metadata(name, path)
    if metadata.get("data_format", "hdf5") == "hdf5":
        _compare_count(name, metadata, "total_episodes", _check_hdf5(name, path / _MAIN, limit))
    from minari.dataset.minari_dataset import MinariDataset

    source = MinariDataset(path)
    spec = _spec(name, source, observation_keys)
    episodes = list(_episodes(name, source, spec, observation_keys))
    dataset = Dataset.from_trajectories(episodes, name=name, spec=spec)
    _compare_count(name, metadata, "total_steps", dataset.steps)
    return dataset


def _metadata(name: str, path: Path) -> dict[str, Any]:
    file = path / "metadata.json"
    if not file.is_file() or file.stat().st_size > _METADATA_LIMIT:
        raise DataError(f"{name}: metadata.json: expected a file of at most {_METADATA_LIMIT} bytes, got none")
    metadata = json.loads(file.read_bytes())
    for field in ("observation_space", "action_space"):
        # Without them Minari would build the environment that the file names, and so import what it names.
        if not isinstance(metadata, dict) or not isinstance(metadata.get(field), str):
            raise DataError(f"{name}: metadata.json: {field}: expected a space, got none")
    return metadata


def _check_hdf5(name: str, file: Path, limit: int) -> int:
    """Refuse links, outside storage and declared sizes beyond `limit`, over the whole file; counts its episodes."""
    import h5py

    if not file.is_file():
        raise DataError(f"{name}: {_MAIN}: expected a file, got none")
    with h5py.File(file, "r") as content:
        declare(name, dict(_leaves(name, content, "", 0)), limit)
        return sum(key.startswith("episode_") for key in content.keys())  # noqa: SIM118


def _leaves(name: str, group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    import h5py

    if depth > 8:
        raise DataError(f"{name}: {prefix}: expected groups at most 8 deep, got more")
    for key in group.keys():  # noqa: SIM118
        place = f"{prefix}/{key}".lstrip("/")
        if isinstance(group.get(key, getlink=True), h5py.HardLink) and isinstance(group[key], h5py.Group):
            yield from _leaves(name, group[key], place, depth + 1)
        elif (found := local_dataset(name, group, key, place=place, numbers=False)) is not None:
            yield place, found


def _spec(name: str, source: Any, observation_keys: list[str] | None) -> Spec:
    from gymnasium import spaces

    from scanrl.spaces import spec_of

    space, actions = source.observation_space, source.action_space
    if isinstance(space, spaces.Dict):
        present = list(space.spaces)
        if not observation_keys or not set(observation_keys) <= set(present):
            raise DataError(
                f"{name}: observation_keys: expected some of {present}, got {observation_keys} "
                "(scanrl data convert --observation-keys)"
            )
    if isinstance(actions, spaces.Discrete) and actions.start != 0:
        raise DataError(f"{name}: action_space: expected choices from 0, got from {actions.start}")
    env_id = source.env_spec.id if source.env_spec is not None else None
    spec = spec_of(name, space, actions, env_id=env_id, observation_keys=observation_keys)
    if isinstance(space, spaces.Discrete):  # recorded as the number it is, as always
        spec = replace(spec, observation_shape=(), observation_parts=())
    if isinstance(actions, spaces.Box):  # bounds as the file has them, also where only some are finite
        low, high = (tuple(bound.astype(float).tolist()) for bound in (actions.low, actions.high))
        spec = replace(spec, action_low=low, action_high=high)
    return spec


def _episodes(name: str, source: Any, spec: Spec, observation_keys: list[str] | None) -> Iterator[Trajectory]:
    for index, episode in enumerate(source.iterate_episodes()):
        place = f"{name}: episode {index}"
        arrays = {
            "observations": _observations(place, episode.observations, spec, observation_keys),
            "actions": _actions(place, episode.actions, spec),
            "rewards": np.asarray(episode.rewards),
            **{field: np.asarray(getattr(episode, field)) for field in ("terminations", "truncations")},
        }
        yield _trajectory(place, arrays, spec)


def _actions(place: str, values: Any, spec: Spec) -> np.ndarray:
    from scanrl.structure import action_row

    try:
        return action_row(spec, values)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _observations(place: str, values: Any, spec: Spec, keys: list[str] | None) -> np.ndarray:
    from scanrl.structure import flat_observations

    if not isinstance(values, dict):
        return np.asarray(flat_observations(spec, values))
    parts = [np.asarray(values[key]) for key in keys or ()]
    lengths = {key: len(part) for key, part in zip(keys or (), parts, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{place}: observations: expected entries of equal length, got {lengths}")
    return flat_observations(spec, dict(zip(keys or (), parts, strict=True)))


def _trajectory(place: str, arrays: dict[str, np.ndarray], spec: Spec) -> Trajectory:
    """One episode with as many observations as actions; Minari records one more, some converters do not."""
    steps = len(arrays["actions"])
    if len(arrays["observations"]) == steps + 1:
        arrays["observations"] = arrays["observations"][:steps]
    shapes = {"observations": spec.observation_shape, "actions": spec.action_shape}
    for field, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{place}: {field}: expected numbers, got {array.dtype}")
        if len(array) != steps:
            also = f" or {steps + 1}" if field == "observations" else ""
            raise DataError(f"{place}: {field}: expected {steps}{also} values, got {len(array)}")
        if array.shape[1:] != shapes.get(field, ()):
            raise DataError(f"{place}: {field}: expected shape {shapes.get(field, ())}, got {array.shape[1:]}")
    return Trajectory(**arrays)


def _compare_count(name: str, metadata: dict[str, Any], field: str, found: int) -> None:
    declared = metadata.get(field)
    if declared is not None and declared != found:
        raise DataError(f"{name}: metadata.json: {field}: expected {found} as in the data, got {declared}")
