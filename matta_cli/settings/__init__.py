"""Every setting, its range and its source."""
