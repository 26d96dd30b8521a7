"""``python -m matta_cli``: the command line."""

from __future__ import annotations

import os
import sys

# python -m looks for modules in the current folder first: a torch.py there would run
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109
    del sys.path[0]
    own = __file__.removesuffix("__main__.py").rstrip(os.sep).removesuffix("matta_cli")
    sys.path.append(own.rstrip(os.sep))

from matta_cli.main import main

main()
