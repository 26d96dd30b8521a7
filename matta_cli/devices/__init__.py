"""Where a run computes, in which numbers, and with which other processes."""
