"""From a TA to a trained TA."""
