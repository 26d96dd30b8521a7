"""``matta inspect``: what a TA holds."""

from __future__ import annotations

from typing import Annotated, Any

from matta_cli import console
from matta_cli.commands import options
from matta_cli.files.workspace import refuse_no_ta

_Widths = Annotated[
    str | None, options.option("--widths", "Widths to show besides the base and the TA.")
]


def inspect(
    folder: options.Folder = None,
    widths: _Widths = None,
    out: options.Out = options.OUT,
    json: options.Json = False,
) -> None:
    """Show a TA's axes, the importance of their units, and what each width comes to.

    Example: matta inspect --widths 0.125,0.25,0.5
    """
    out = options.output(folder, out)
    refuse_no_ta(out)

    from matta_cli.conversion.inspect import inspect as run

    more = options.parse_widths(widths) if widths is not None else ()
    inspected = run(out, more)
    if json:
        console.data(inspected)
    else:
        _show(inspected)
    if not inspected["student"]:
        console.hint(options.following(out))


def _show(inspected: dict[str, Any]) -> None:
    what = f"a {inspected['adapter']} for {inspected['task']}"
    if inspected["student"]:
        own = "its own size is width 1 here"
        console.say(f"A Student of {inspected['source']}, {what}; {own}.")
    else:
        order = f"units ordered by {inspected['order']}"
        console.say(f"TA of {inspected['source']}, {what}; {order}.")
    _show_axes(inspected["axes"])
    if inspected["importance"]:
        _show_importance(inspected["importance"])
    options.show_widths(inspected["widths"])
    console.say(inspected["floor"])


def _show_axes(axes: list[dict[str, Any]]) -> None:
    rows = []
    for a in axes:
        grows = "yes" if a["grows"] else "no"
        spans = _span(a["base"]), _span(a["ta"])
        rows.append([a["kind"], str(a["axes"]), *spans, str(a["step"]), grows])
    console.table(["axis", "how many", "base", "TA", "in steps of", "grows"], rows)


def _show_importance(importance: dict[str, list[float]]) -> None:
    from matta_cli.conversion.inspect import picture

    order = "the most important first (layers by number)"
    console.say(f"Importance, {order}, and the share of the first half:")
    rows = []
    for name, scores in importance.items():
        half = sum(scores[: -(-len(scores) // 2)]) / (sum(scores) or 1.0)
        ends = f"{min(scores):.3g}", f"{max(scores):.3g}"
        rows.append([name, picture(scores), *ends, f"{half:.0%}"])
    console.table(["axis", "importance", "least", "most", "first half"], rows)


def _span(sizes: list[int]) -> str:
    """``64`` or ``32..64``."""
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low}..{high}"
