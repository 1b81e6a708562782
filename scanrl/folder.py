"""Folders that exist whole or not at all: written beside their place, flushed, renamed, and checked byte for byte.

Both the dataset store and the checkpoint are such folders. `manifest.json` names every file with size and sha256,
carries fields of the caller, and a sha256 of itself, so that any flipped bit, cut or missing file is found and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from scanrl.types import CorruptFile, DataError

__all__ = ["MANIFEST", "Writer", "verify_folder", "write_folder"]

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 24  # bytes; a larger one is not ours

Writer = Callable[[Path], object]
"""Writes one file at the path it is given."""


def write_folder(path: Path, kind: str, version: int, fields: Mapping[str, Any], files: Mapping[str, Writer]) -> None:
    """Write `files` (relative name -> writer) and a manifest to a new folder `path`, atomically.

    Args:
        path: the folder; replaced if it exists (the caller decides whether it may be).
        kind: what the folder is, e.g. `scanrl-store`; checked when it is read.
        version: format version; readers refuse newer ones.
        fields: JSON values for the manifest.
        files: called in order, each with the path to write.

    An old folder is moved aside just before the new one takes its name; a crash between those two renames leaves the
    old one beside it as `.<name>.old-*`.

    Raises:
        OSError: the disk refused; whatever was at `path` is still there and nothing else is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        entries = {}
        for name, write in files.items():
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            _write(write, file)
            _sync(file)
            entries[name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        manifest = {**fields, "format": kind, "version": version, "files": entries}
        _write(lambda file: file.write_bytes(_manifest_bytes(manifest)), folder / MANIFEST)
        _sync(folder / MANIFEST)
        for inner in {(folder / name).parent for name in files} | {folder}:
            _sync(inner)
        _replace(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(path.parent)


def verify_folder(
    path: Path, kind: str, version: int, expected: Iterable[str], *, digests: bool = True
) -> dict[str, Any]:
    """The manifest of a folder whose files are what it says.

    Args:
        expected: names of the files that must be there, and no others.
        digests: compare the sha256 of every file, not only its size.

    Raises:
        CorruptFile: a file is missing, altered, cut short or a link; the message names it.
        DataError: `path` is no such folder, or a newer release wrote it.
    """
    expected = sorted(expected)
    manifest = _read_manifest(path, kind, version)
    entries = manifest.get("files")
    if not isinstance(entries, dict) or sorted(entries) != expected:
        odd = sorted(set(entries) ^ set(expected)) if isinstance(entries, dict) else entries
        raise CorruptFile(f"{path / MANIFEST}: files: expected {expected}, got a difference in {odd}")
    for name in expected:
        _check_file(path, name, entries[name], digests)
    return manifest


def _write(write: Writer, file: Path) -> None:
    """Have `file` written; an error of the disk says which file it was about."""
    try:
        write(file)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def _replace(folder: Path, path: Path) -> None:
    """Give `folder` the name `path`; an old folder of that name is moved aside just before and removed after."""
    if not (path.is_dir() and any(path.iterdir())):
        os.rename(folder, path)
        return
    aside = path.parent / f".{path.name}.old-{os.getpid()}"
    os.rename(path, aside)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _read_manifest(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The manifest's fields, its own sha256 verified."""
    file = path / MANIFEST
    if not path.is_dir() or not (file.exists() or file.is_symlink()):
        raise DataError(f"{path}: expected a {kind.removeprefix('scanrl-')} (a folder with {MANIFEST}), got none")
    _check_plain(file)
    if file.stat().st_size > MANIFEST_LIMIT:
        raise CorruptFile(f"{file}: expected at most {MANIFEST_LIMIT} bytes, got {file.stat().st_size}")
    content = file.read_bytes()
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise CorruptFile(f"{file}: expected JSON, got something else") from None
    if not isinstance(fields, dict) or fields.get("format") != kind:
        raise CorruptFile(f"{file}: format: expected {kind!r}, got something else")
    # Every version states its sha256 in this way, so that a flipped bit in the version is not taken for a newer one.
    if _manifest_bytes(fields) != content:
        raise CorruptFile(f"{file}: expected the sha256 it states, got other contents")
    found = fields.get("version")
    if isinstance(found, int) and found > version:
        raise DataError(f"{file}: version: expected at most {version}, got {found} (written by a newer scanrl)")
    return fields


def _check_file(folder: Path, name: str, entry: Any, digest: bool) -> None:
    """Compare one file with its manifest entry."""
    file = folder / name
    for inner in file.relative_to(folder).parents[:-1]:
        if (folder / inner).is_symlink():
            raise CorruptFile(f"{folder / inner}: expected a folder, got a link")
    _check_plain(file)
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
        raise CorruptFile(f"{folder / MANIFEST}: files: {name}: expected bytes and sha256, got {entry}")
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise CorruptFile(f"{file}: expected {entry['bytes']} bytes, got {size}")
    if digest and (found := _digest(file)) != entry["sha256"]:
        raise CorruptFile(f"{file}: sha256: expected {str(entry['sha256'])[:12]}…, got {found[:12]}…")


def _sync(path: Path) -> None:
    """Make a file, or the renames within a folder, survive a power cut; systems that cannot open a folder pass."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_plain(file: Path) -> None:
    """A link could point anywhere, a pipe would block."""
    try:
        mode = file.lstat().st_mode
    except OSError:
        raise CorruptFile(f"{file}: expected a file, got none") from None
    if not stat.S_ISREG(mode):
        raise CorruptFile(f"{file}: expected a regular file, got {'a link' if stat.S_ISLNK(mode) else 'another kind'}")


def _manifest_bytes(fields: Mapping[str, Any]) -> bytes:
    # The manifest carries its own sha256 and is compared byte for byte, so that a flipped bit in it shows too.
    body = {k: v for k, v in fields.items() if k != "sha256"}
    text = json.dumps(body, indent=1, sort_keys=True)
    return json.dumps({**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True).encode()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
