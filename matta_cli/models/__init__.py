"""From what the user typed to a module, and back to a folder."""
