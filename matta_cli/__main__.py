"""``python -m matta_cli``: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``matta``: what is stopped while it is only being imported says so, too."""
    try:
        from matta_cli.main import main as typed

        typed()
    except KeyboardInterrupt:
        sys.stderr.write("matta: Stopped before anything was begun.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
