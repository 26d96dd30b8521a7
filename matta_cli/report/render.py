"""The templates of the report's page and its Markdown."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, Template, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext
from markupsafe import Markup

from matta_cli.report.numbers import count
from matta_cli.report.values import short


@cache
def template(name: str) -> Template:
    """A template of this package. Whatever a template is given is escaped for what it writes."""
    texts = Environment(
        loader=PackageLoader("matta_cli.report"),
        autoescape=select_autoescape(["html"]),
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts.filters |= {"count": count, "short": short, "pairwise": pairwise}
    texts.filters |= {"fence": fence, "raw": Markup}
    return texts.get_template(name)


@pass_eval_context
def _escaped(context: EvalContext, text: Any) -> Any:
    return text if context.autoescape or isinstance(text, Markup) else escaped(text)


def escaped(text: Any) -> str:
    """Text for Markdown: names and data must not become markup, or break out of a table cell."""
    one_line = escape(" ".join(str(text).split()), quote=False)
    # A bracket makes a link only before ( [ or : so intervals stay readable in the raw text.
    return re.sub(r"([\\`*_|#~]|\](?=[(\[:]))", r"\\\1", one_line)


def fence(text: str, language: str) -> Markup:
    """A block of Markdown's code that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}{language}\n{text.rstrip()}\n{ticks}")
