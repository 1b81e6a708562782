"""The looks that pages share: templates beside this module that extend `base.html`."""

from __future__ import annotations

from importlib import metadata, resources
from typing import Any

import jinja2

__all__ = ["render"]


def render(template: str, **values: Any) -> str:
    """A page as text: one HTML file that loads nothing and runs nothing.

    Args:
        template: file name of the template.
        values: what it shows; `title` and `headline` in all of them.
    """
    engine = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template(template).render(**values, version=_version()).strip() + "\n"


def _source(name: str) -> str:
    return resources.files("scanrl.report").joinpath(name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return metadata.version("scanrl")
    except metadata.PackageNotFoundError:
        return ""
