"""A report, and how it is told."""
