"""Models that say a tag of each word of a text."""
