"""``matta inspect``: what a TA holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options


def inspect(
    folder: options.Folder = None,
    widths: Annotated[
        str | None, typer.Option(help="Widths to show besides the base and the TA.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show a TA's axes, the importance of their units, and what each width comes to.

    Example: matta inspect --widths 0.125,0.25,0.5
    """
    from matta_cli.conversion import inspect as conversion_inspect
    from matta_cli.conversion.inspect import numbers, picture

    found = conversion_inspect.inspect(
        folder or Path("matta-out"), options.parse_widths(widths) or ()
    )
    if json:
        console.data(found)
        return
    what = f"a {found['adapter']} for {found['task']}"
    if found["student"]:
        console.say(f"A Student of {found['source']}, {what}; its own size is width 1 here.")
    else:
        console.say(f"TA of {found['source']}, {what}; units ordered by {found['order']}.")
    console.table(
        ["axis", "how many", "base", "TA", "in steps of", "grows"],
        [
            [
                a["kind"],
                str(a["axes"]),
                options.span(a["base"]),
                options.span(a["ta"]),
                str(a["step"]),
                "yes" if a["grows"] else "no",
            ]
            for a in found["axes"]
        ],
    )
    if found["importance"]:
        console.say(
            "Importance, the most important first (layers by number), and the share of the first half:"
        )
        rows = []
        for name, scores in found["importance"].items():
            half = sum(scores[: -(-len(scores) // 2)]) / (sum(scores) or 1.0)
            rows.append(
                [name, picture(scores), f"{min(scores):.3g}", f"{max(scores):.3g}", f"{half:.0%}"]
            )
        console.table(["axis", "importance", "least", "most", "first half"], rows)
    rows = []
    for row in found["widths"]:
        kept = "all" if row["layers"] is None else numbers(row["layers"])
        rows.append(
            [
                f"{row['width']:g}",
                row["role"],
                row["shown"],
                f"{row['parameters']:,}",
                kept,
                row["loads"],
            ]
        )
    console.table(
        ["width", "role", "sizes", "parameters", "layers", "loads with"], rows, spare=["layers"]
    )
