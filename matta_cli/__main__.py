"""``python -m matta_cli``: the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of ``matta``: what is stopped while it is only being imported says so, too."""
    try:
        from matta_cli.main import main as typed

        typed()
    except KeyboardInterrupt:
        sys.stderr.write("matta: Stopped before anything was begun.\n")
        sys.exit(130)


def _without_current_folder() -> None:
    """Python looks for modules in the current folder first: a torch.py there would run."""
    if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109
        del sys.path[0]
        own = __file__.removesuffix("__main__.py").rstrip(os.sep).removesuffix("matta_cli")
        sys.path.append(own.rstrip(os.sep))


if __name__ == "__main__":
    _without_current_folder()
    main()
