"""Models that say a label, several labels, or a number of a text or a pair of texts."""
