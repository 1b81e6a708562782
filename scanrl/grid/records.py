"""An append-only file of JSON lines that survives being cut: every line is flushed to the disk before the next."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanrl.types import CorruptFile

__all__ = ["Records"]


class Records:
    """`path`, one JSON object per line. One process writes; any number may read meanwhile.

    Args:
        path: the file; it need not exist yet.
        keys: what every line has.
    """

    def __init__(self, path: Path, keys: Sequence[str] = ()) -> None:
        self.path, self.keys = path, keys

    def read(self) -> list[dict[str, Any]]:
        """The lines, oldest first; a last one that was torn while it was written is left out.

        Raises:
            CorruptFile: another line is no JSON object, or lacks one of the keys.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        found = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                raise CorruptFile(f"{self.path}: line {number}: expected a JSON object, got something else")
            for key in self.keys:
                if key not in values:
                    raise CorruptFile(f"{self.path}: line {number}: {key}: expected a value, got none")
            found.append(values)
        return found

    def append(self, values: dict[str, Any]) -> None:
        """Add a line; a torn one before it is cut off. On return it is on the disk.

        Raises:
            OSError: the disk refused.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
