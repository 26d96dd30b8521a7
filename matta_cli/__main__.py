from __future__ import annotations

from matta_cli.main import main

main()
