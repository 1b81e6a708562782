"""Tables that a command makes anew between two marks of a page, whose text is written by hand."""

from __future__ import annotations

__all__ = ["replace_marked"]


def replace_marked(page: str, name: str, command: str, table: str, file: str) -> str:
    """The page of a file with the table between `<!-- name: command -->` and `<!-- /name -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {name}: {command} -->", f"<!-- /{name} -->"
    before, opening, rest = page.partition(begin)
    _, closing, after = rest.partition(end)
    if not (opening and closing):
        raise ValueError(f"{file}: expected the marks {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"
