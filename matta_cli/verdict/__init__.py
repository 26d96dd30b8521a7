"""Whether nesting was worth it."""
