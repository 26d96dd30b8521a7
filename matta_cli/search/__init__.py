"""Sizes for a budget."""
