"""The commands: each parses, calls the engine, prints. Heavy imports happen inside, so that
``--help`` is quick.
"""

from __future__ import annotations
