"""`data info`, `data convert` and `data validate`."""

from __future__ import annotations

from scanrl.console import print_json, print_table, text
from scanrl.verbs.options import READING, OutPath, Reading, Uri

__all__ = ["data_convert", "data_info", "data_validate"]


def data_info(uri: Uri, reading: Reading = READING, json: bool = False) -> int:
    """Show what a dataset holds.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
        json: print one JSON object instead of a table.
    """
    from scanrl.data.summary import summary

    found = summary(reading.load(uri))
    if json:
        return print_json(found)
    print_table(("", found["name"]), [(k, text(v)) for k, v in found.items() if k != "name"])
    return 0


def data_convert(uri: Uri, out: OutPath, overwrite: bool = False, reading: Reading = READING) -> int:
    """Convert a dataset to a store: a checksummed folder of memory-mappable arrays.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
        out: the folder to write.
        overwrite: replace a store that is already there.
    """
    from scanrl.data import write_store

    dataset = reading.load(uri)
    write_store(dataset, out, overwrite=overwrite)
    print(f"{out}: {len(dataset)} episodes, {dataset.steps} steps, fingerprint {dataset.fingerprint[:12]}")
    return 0


def data_validate(uri: Uri, reading: Reading = READING) -> int:
    """Check a dataset; list what is wrong with it and exit with 1.

    Args:
        uri: d4rl:FILE, minari:ID, npz:FILE, store:FOLDER, or a path.
    """
    from scanrl.data import check

    dataset = reading.load(uri, checked=False)
    problems = check(dataset)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{uri}: {len(dataset)} episodes, {dataset.steps} steps: nothing wrong found")
    return 1 if problems else 0
