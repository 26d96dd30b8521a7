"""``python -m matta_cli``: the command line."""

from __future__ import annotations

from matta_cli.main import main

main()
