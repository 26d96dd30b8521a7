"""Students in other forms than their checkpoint: programs, and fewer bits."""
