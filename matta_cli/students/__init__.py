"""Students: cut out of the TA, proven, written."""
