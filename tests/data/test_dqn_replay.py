"""Buffers of the DQN Replay Dataset, made by Dopamine's rules: black steps before each episode, four gzipped files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from scanrl.data import load
from scanrl.data.atari import read
from scanrl.types import DataError

LENGTHS = (5, 4, 3)  # the last one is cut by the end of the buffer
BLACK = 3
NAME = "$store$_observation_ckpt.7.gz"


def gzipped(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as file:
        np.save(file, array, allow_pickle=False)
    return content.getvalue()


def buffer(folder: Path) -> dict[str, np.ndarray]:
    """Writes a buffer; gives what was played, without the black steps."""
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"observation": [], "action": [], "reward": [], "terminal": []}
    played: dict[str, list] = {name: [] for name in rows}
    for index, length in enumerate(LENGTHS):
        for name, black in (("observation", np.zeros((84, 84))), ("action", 0), ("reward", 0.0), ("terminal", 0)):
            rows[name] += [black] * BLACK
        for step in range(length):
            values = {
                # The second episode has a black picture of its own, after one that is not.
                "observation": rng.integers(1, 256, (84, 84)) * (not (index == 1 and step == 1)),
                "action": int(rng.integers(0, 4)),
                "reward": float(rng.integers(-1, 2)),
                "terminal": int(step == length - 1 and index < 2),
            }
            for name, value in values.items():
                rows[name].append(value)
                played[name].append(value)
    kinds = {"observation": np.uint8, "action": np.int32, "reward": np.float32, "terminal": np.uint8}
    for name, values in rows.items():
        (folder / f"$store$_{name}_ckpt.7.gz").write_bytes(gzipped(np.array(values, kinds[name])))
    return {name: np.array(values, kinds[name]) for name, values in played.items()}


def read_here(folder: Path, **options):
    return read(folder / NAME, name="breakout", limit=1 << 30, **options)


def test_black_steps_are_left_out_and_everything_else_is_kept(tmp_path):
    played = buffer(tmp_path)
    data = read_here(tmp_path, env_id="scanrl/Breakout-v0")
    assert data.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(data.observations, played["observation"])
    np.testing.assert_array_equal(data.actions, played["action"])
    np.testing.assert_array_equal(data.rewards, played["reward"])
    assert data.truncations[-1]
    assert (data.spec.observation_dtype, data.spec.frame_stack, data.spec.env_id) == ("uint8", 4, "scanrl/Breakout-v0")


def test_timesteps_and_returns_start_over_at_the_first_picture_of_each_episode(tmp_path):
    """The released code gives the first picture of every later episode the counter of the one before."""
    played = buffer(tmp_path)
    data = read_here(tmp_path)
    assert data.timesteps.tolist() == [t for length in LENGTHS for t in range(length)]
    begin = 0
    for length in LENGTHS:
        expected = played["reward"][begin : begin + length][::-1].cumsum()[::-1]
        np.testing.assert_array_equal(data.returns_to_go[begin : begin + length], expected)
        begin += length


def test_only_as_many_steps_are_unpacked_as_asked_for(tmp_path):
    buffer(tmp_path)
    file = tmp_path / NAME
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 4])  # the rest need not even be there
    data = read_here(tmp_path, steps=BLACK + 5 + BLACK + 2)
    assert data.lengths.tolist() == [5, 2]
    assert read_here(tmp_path, steps=BLACK + 5 + BLACK + 2, tail="drop").lengths.tolist() == [5]


def test_a_buffer_is_loaded_by_its_file_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    buffer(tmp_path)
    data = load(tmp_path / NAME)
    assert data.source["uri"] == f"dqn-replay:{NAME}"
    assert isinstance(data.observations, np.memmap)
    rewards = np.zeros(sum(LENGTHS) + 3 * BLACK, np.float32)
    (tmp_path / "$store$_reward_ckpt.7.gz").write_bytes(gzipped(rewards))
    assert load(f"dqn-replay:{tmp_path / NAME}").rewards.sum() == 0  # not the cached one: all four files count


def cut(folder: Path) -> None:
    file = folder / NAME
    file.write_bytes(file.read_bytes()[:2000])


def pickled(folder: Path) -> None:
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    (folder / "$store$_action_ckpt.7.gz").write_bytes(content.getvalue())


def huge(folder: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (9, 1 << 20, 1 << 20)}
    )
    (folder / NAME).write_bytes(gzip.compress(header.getvalue()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"^breakout: observation: expected a gzipped npy file, got: Compressed file ended before"),
        (
            lambda f: (f / NAME).write_bytes(b"hello"),
            r"^breakout: observation: expected a gzipped npy file, got: Not a",
        ),
        (lambda f: (f / NAME).write_bytes(gzip.compress(b"hello")), r"^breakout: observation: expected a gzipped npy"),
        (pickled, r"^breakout: action: expected numbers, got objects \(a pickle, which could run code\)$"),
        (huge, r"^breakout: observation: expected at most 1 GiB in all"),
        (lambda f: (f / "$store$_reward_ckpt.7.gz").unlink(), r"^breakout: expected \$store\$_reward_ckpt.7.gz beside"),
        (
            lambda f: (f / "$store$_reward_ckpt.7.gz").write_bytes(gzipped(np.zeros(4, np.float32))),
            r"^breakout: observation: expected 4 values, got 21$",
        ),
        (
            lambda f: (f / NAME).write_bytes(gzipped(np.zeros((21, 7), np.uint8))),
            r"^breakout: observation: expected grey images of uint8, got uint8 \(21, 7\)$",
        ),
        (
            lambda f: (f / NAME).write_bytes(gzipped(np.zeros((21, 84, 84), np.float32))),
            r"^breakout: observation: expected grey images of uint8, got float32",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, damage, message):
    buffer(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        read_here(tmp_path)
    assert "\n" not in str(error.value)


def test_a_buffer_of_black_steps_alone_is_refused(tmp_path):
    buffer(tmp_path)
    with pytest.raises(DataError, match=r"^breakout: expected at least one step that is not black, got none$"):
        read_here(tmp_path, steps=BLACK)
