import json
import os
import shutil
from pathlib import Path

import pytest

from scanrl import folder as machinery
from scanrl.folder import MANIFEST, verify_folder, write_folder
from scanrl.types import CorruptFile, DataError

KIND = "scanrl-toy"
OLD = {"a.bin": b"old a", "deep/b.bin": b"old b" * 50}
NEW = {"a.bin": b"new a!", "deep/b.bin": b"new b" * 70}


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Waiting for the disk takes most of the time; that it is asked is counted where it matters."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def write(path, files, version=1, **fields):
    writers = {name: lambda file, content=content: file.write_bytes(content) for name, content in files.items()}
    write_folder(path, KIND, version, fields, writers)


def contents(path):
    """The files of a folder that verifies."""
    verify_folder(path, KIND, 1, OLD)
    return {name: (path / name).read_bytes() for name in OLD}


class Killed(BaseException):
    """Stands for a kill: nothing after it runs, no clean-up either."""


class Disk:
    """Counts writes, flushes and renames; the `at`-th fails, and if it was a kill so does all that follows."""

    def __init__(self, monkeypatch, at, error):
        self.calls, self.at, self.error = 0, at, error
        monkeypatch.setattr(os, "fsync", self.hook(lambda descriptor: None))
        monkeypatch.setattr(os, "rename", self.hook(os.rename))
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: self.write(path, content))
        monkeypatch.setattr(shutil, "rmtree", self.rmtree(shutil.rmtree))

    def tick(self):
        call, self.calls = self.calls, self.calls + 1
        if call == self.at or (call > self.at and isinstance(self.error, Killed)):
            raise self.error

    def hook(self, function):
        def counted(*arguments, **options):
            self.tick()
            return function(*arguments, **options)

        return counted

    def write(self, path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
            self.tick()
            return file.write(content[len(content) // 2 :])

    def rmtree(self, function):
        dead = lambda: isinstance(self.error, Killed) and self.calls > self.at  # noqa: E731
        return lambda *arguments, **options: None if dead() else function(*arguments, **options)


FULL = OSError(28, "No space left on device")
# 3 files written and flushed, 2 folders flushed, one rename (two over an old folder), the parent flushed.
POINTS = 11


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "full"])
@pytest.mark.parametrize("at", range(POINTS))
def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch, at, error):
    with monkeypatch.context() as patch:
        disk = Disk(patch, at, error)
        if at < POINTS - 1:
            with pytest.raises((Killed, OSError)):
                write(tmp_path / "toy", NEW)
        else:
            write(tmp_path / "toy", NEW)
            assert disk.calls == POINTS - 1, "every point is covered"
    if (tmp_path / "toy").exists():
        assert at >= POINTS - 2
        assert contents(tmp_path / "toy") == NEW
    if error is FULL:
        assert [p.name for p in tmp_path.iterdir() if p.name != "toy"] == []


@pytest.mark.parametrize("error", [Killed(), FULL], ids=["killed", "full"])
@pytest.mark.parametrize("at", range(POINTS))
def test_an_overwritten_folder_is_the_old_or_the_new_one(tmp_path, monkeypatch, at, error):
    write(tmp_path / "toy", OLD)
    with monkeypatch.context() as patch:
        Disk(patch, at, error)
        with pytest.raises((Killed, OSError)):
            write(tmp_path / "toy", NEW)
    if (tmp_path / "toy").exists():
        assert contents(tmp_path / "toy") == (OLD if at < POINTS - 1 else NEW)
    else:  # killed between the two renames
        assert isinstance(error, Killed)
        assert contents(next(tmp_path.glob(".toy.old-*"))) == OLD
    if error is FULL:
        assert os.listdir(tmp_path) == ["toy"]


def test_a_full_disk_says_which_file_did_not_fit(tmp_path):
    def refuse(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*big.bin'") as caught:
        write_folder(tmp_path / "toy", KIND, 1, {}, {"big.bin": refuse})
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def test_fields_come_back_and_a_newer_version_is_refused_with_both_numbers(tmp_path):
    write(tmp_path / "toy", OLD, version=3, step=7)
    assert verify_folder(tmp_path / "toy", KIND, 3, OLD)["step"] == 7
    with pytest.raises(DataError, match=r"manifest.json: version: expected at most 2, got 3 \(written by a newer"):
        verify_folder(tmp_path / "toy", KIND, 2, OLD)


def test_a_flipped_bit_of_the_manifest_is_damage_and_never_a_newer_version(tmp_path):
    write(tmp_path / "toy", OLD)
    file = tmp_path / "toy" / MANIFEST
    good = file.read_bytes()
    version = good.index(b'"version": 1') + len('"version": ')
    for bit in [*range(8 * version, 8 * version + 8), *range(0, len(good) * 8, 17)]:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(CorruptFile, match=r"manifest.json: "):
            verify_folder(tmp_path / "toy", KIND, 1, OLD)


def test_another_kind_of_folder_is_named(tmp_path):
    write(tmp_path / "toy", OLD)
    with pytest.raises(CorruptFile, match=r"manifest.json: format: expected 'scanrl-other'"):
        verify_folder(tmp_path / "toy", "scanrl-other", 1, OLD)
    with pytest.raises(DataError, match=r"expected a toy \(a folder with manifest.json\), got none"):
        verify_folder(tmp_path, KIND, 1, OLD)


@pytest.mark.parametrize("inner", ["a.bin", "deep", MANIFEST])
def test_links_inside_are_refused(tmp_path, inner):
    write(tmp_path / "toy", OLD)
    shutil.move(tmp_path / "toy" / inner, tmp_path / "elsewhere")
    (tmp_path / "toy" / inner).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptFile, match=rf"{inner}: expected a .*, got a link$"):
        verify_folder(tmp_path / "toy", KIND, 1, OLD)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "deep/../../secret", "extra.bin"])
def test_file_names_of_other_places_are_refused(tmp_path, name):
    write(tmp_path / "toy", OLD)
    file = tmp_path / "toy" / MANIFEST
    fields = json.loads(file.read_bytes())
    fields["files"][name] = {"bytes": 1, "sha256": ""}
    file.write_bytes(machinery._manifest_bytes(fields))
    with pytest.raises(CorruptFile, match=r"manifest.json: files: expected .*, got a difference in"):
        verify_folder(tmp_path / "toy", KIND, 1, OLD)


@pytest.mark.parametrize("entry", [{}, None, 3, {"bytes": 5}, {"bytes": "5", "sha256": ""}])
def test_an_entry_that_makes_no_sense_is_damage(tmp_path, entry):
    write(tmp_path / "toy", OLD)
    file = tmp_path / "toy" / MANIFEST
    fields = json.loads(file.read_bytes())
    fields["files"]["a.bin"] = entry
    file.write_bytes(machinery._manifest_bytes(fields))
    with pytest.raises(CorruptFile, match=r"a.bin: expected"):
        verify_folder(tmp_path / "toy", KIND, 1, OLD)


def test_a_huge_manifest_is_not_read(tmp_path):
    write(tmp_path / "toy", OLD)
    os.truncate(tmp_path / "toy" / MANIFEST, 1 << 25)
    with pytest.raises(CorruptFile, match=r"manifest.json: expected at most 16777216 bytes, got 33554432"):
        verify_folder(tmp_path / "toy", KIND, 1, OLD)
