"""``matta adapters``: what is installed."""

from __future__ import annotations

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError


def adapters(json: options.Json = False) -> None:
    """List the installed adapters."""
    from matta_cli import registry

    found = []
    for name, origin in registry.origins().items():
        try:
            adapter = registry.adapter(name)
        except MattaError as error:
            console.say(str(error))
            continue
        what = (type(adapter).__doc__ or "").strip().splitlines()[0]
        found.append({"name": name, "task": adapter.task or "any", "origin": origin, "what": what})
    if json:
        console.data(found)
    else:
        console.table(["name", "task", "from", "what"], [[a["name"], a["task"], a["origin"], a["what"]] for a in found])
