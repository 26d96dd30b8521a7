"""From a base to a TA."""
