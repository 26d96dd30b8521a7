"""The commands: each parses what was typed, calls the engine, and prints."""
