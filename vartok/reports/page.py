"""Fills the templates of reports, and makes the page's Content-Security-Policy."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vartok.errors import counted, printable
from vartok.reports.gallery import MAX_NAME

MAX_FAILURES = 50
"""Largest number of failures that a page names."""


def failure_rows(failures: Sequence[tuple[str, Exception]]) -> list[tuple[str, str]]:
    """Return names and reasons of at most `MAX_FAILURES` failures, and the number of the others."""
    rows = [(name, str(error)) for name, error in failures[:MAX_FAILURES]]
    others = len(failures) - len(rows)
    return rows + [(counted(others, "other"), "not named here")] * bool(others)


def render(template: str, **values: Any) -> str:
    """Return the HTML text of a page, escaped throughout.

    Args:
        template: name of the template.
        values: what the template shows.
    """
    style, script = (_resource(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(**values, policy=policy, style=Markup(style), script=Markup(script))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vartok.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda text: printable(text, MAX_NAME)
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> Markup:
    """Return a name as HTML that may break after a slash, underscore or hyphen, rather than elsewhere."""
    return Markup(re.sub("(?<=[/_-])", "<wbr>", escape(printable(text, MAX_NAME))))


@functools.cache
def _resource(name: str) -> str:
    return (files("vartok.reports") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the source of a Content-Security-Policy that allows an element of this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
