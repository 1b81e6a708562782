"""What the command says of an error, and its exit code: 2 bad input, 3 corrupt file, 4 out of resources, 1 the rest."""

from __future__ import annotations

import errno
import os
import re
import sys
from signal import SIGINT

from scanrl.types import CorruptFile, DataError

__all__ = ["describe_failure", "tell_failure"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)
_NO_WAY = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Storage size calculation overflowed", re.IGNORECASE)


def tell_failure(error: BaseException) -> int:
    """The exit code of an error, after one line about it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be said there
        return 1
    code, text = describe_failure(error)
    print(f"scanrl: {text}", file=sys.stderr)
    return code


def describe_failure(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and one line about it."""
    code, text = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, CorruptFile):
        code, text = 3, str(error)
    elif isinstance(error, DataError):
        code, text = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        code, text = 128 + SIGINT, "interrupted"
    elif isinstance(error, OSError) and error.errno in _FULL:
        code, text = 4, f"out of resources: {_place(error)}"
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        code, text = 4, "out of resources: memory (a smaller train.batch_size, model.context or model.width needs less)"
    elif isinstance(error, OSError) and error.errno in _NO_WAY:
        code, text = 2, _place(error)
    elif (stopped := getattr(error, "exit_code", None)) is not None:
        code, text = stopped, str(error)
    return code, " ".join(text.split())


def _place(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
