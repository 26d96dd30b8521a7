"""``matta adapters``: what is installed."""

from __future__ import annotations

from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError, command

_Specs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE.py:CLASS]...", help="Code of yours to trust from now on."),
]


def adapters(specs: _Specs = None, json: options.Json = False) -> None:
    """List the installed adapters.

    A FILE.py:CLASS or package.module:CLASS named here is code that folders of matta, and files of
    settings, may use from now on; so is a package.module:FUNCTION that builds a model.
    """
    from matta_cli.models import names, plugins

    rows, following = [], ["MODEL", "--adapter", "NAME"]
    for spec, origin in (names.origins() | {spec: spec for spec in specs or []}).items():
        try:
            adapter = plugins.trusted(spec) if spec in (specs or []) else plugins.adapter(spec)
        except MattaError as error:
            if spec in (specs or []):
                raise
            console.say(str(error))
            continue
        if spec in (specs or []):
            following = ["MODEL", "--adapter", spec] if adapter else [spec]
        if adapter is None:
            console.say(f"{spec} is trusted from now on.")
            continue
        what = " ".join((type(adapter).__doc__ or "").strip().partition("\n\n")[0].split())
        what = what.replace("`", "")
        rows.append([adapter.name, adapter.task or "several", origin, what])
    if json:
        keys = ("name", "task", "origin", "what")
        console.data([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        console.table(["name", "task", "from", "what"], rows, ["from"], prose=["what"])
    console.hint(command("convert", *following))
