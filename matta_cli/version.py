"""The version of matta."""

__version__ = "0.1.0"
