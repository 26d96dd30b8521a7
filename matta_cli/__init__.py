"""matta: one dense PyTorch model into a family of good small ones."""

__version__ = "0.1.0"
