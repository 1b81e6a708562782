"""How a dataset is read, as options of a command: `scanrl data info | convert | validate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scanrl.data import FORMATS, load, parse_uri
from scanrl.data.dataset import Dataset
from scanrl.types import DataError

__all__ = ["ReadOptions"]


@dataclass(frozen=True)
class ReadOptions:
    """How the data is read."""

    nonfinite: Literal["error", "drop-episode"] = "error"
    """What to do about episodes with a NaN or infinite number."""
    tail: Literal["keep", "drop"] = "keep"
    """Steps after the last end of an episode (d4rl, npz, dqn-replay): keep as a truncated episode, or drop."""
    env_id: str | None = None
    """Gymnasium id of the environment (d4rl, npz, dqn-replay); by default what the file says."""
    steps: int | None = None
    """Steps to read of a buffer (dqn-replay); by default 100,000 of its million."""
    observation_keys: tuple[str, ...] = ()
    """Entries of a dictionary observation to join into one vector, in this order (minari)."""
    memory_gib: float = 4.0
    """Memory for the process that reads a foreign file, GiB."""
    timeout: float | None = None
    """Seconds for that process; by default by the size of the file."""

    def load(self, uri: str, checked: bool = True) -> Dataset:
        """The dataset named by `uri`; see `scanrl.load`.

        Raises:
            DataError: besides what `load` raises, an option the format does not have, or a limit that is none.
        """
        for name, limit in (("memory-gib", self.memory_gib), ("timeout", self.timeout)):
            if limit is not None and not 0 < limit < 1e6:
                raise DataError(f"data: --{name}: expected more than 0 and less than a million, got {limit}")
        asked = {
            "tail": "" if self.tail == "keep" else self.tail,
            "env_id": self.env_id,
            "steps": self.steps,
            "observation_keys": list(self.observation_keys),
        }
        options = {name: value for name, value in asked.items() if value}
        scheme, _ = parse_uri(uri)
        for name in options:
            if name not in FORMATS[scheme].options:
                known = " or ".join(other for other, kind in FORMATS.items() if name in kind.options)
                raise DataError(f"{uri}: --{name.replace('_', '-')}: expected data of format {known}, got {scheme}")
        return load(
            uri,
            nonfinite=self.nonfinite,
            memory_gib=self.memory_gib,
            timeout=self.timeout,
            checked=checked,
            **options,
        )
