"""Models that give one of several classes to an image."""
