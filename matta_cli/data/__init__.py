"""Examples by number, from whatever the user has."""
