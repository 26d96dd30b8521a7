"""``matta adapters``: what is installed."""

from __future__ import annotations

from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError


def adapters(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE.py:CLASS]...", help="Trust these as well.")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the installed adapters.

    A FILE.py:CLASS (or package.module:CLASS) named here is code that folders of matta may use from
    now on.
    """
    from matta_cli.models import plugins

    found = []
    origins = plugins.origins() | {spec: spec for spec in specs or []}
    for spec, origin in origins.items():
        try:
            adapter = plugins.adapter(spec)
        except MattaError as error:
            if spec in (specs or []):
                raise
            console.say(str(error))
            continue
        what = " ".join((type(adapter).__doc__ or "").strip().partition("\n\n")[0].split())
        found.append(
            {"name": adapter.name, "task": adapter.task or "any", "origin": origin, "what": what}
        )
    if json:
        console.data(found)
    else:
        console.table(
            ["name", "task", "from", "what"],
            [[a["name"], a["task"], a["origin"], a["what"]] for a in found],
        )
