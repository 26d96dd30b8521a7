"""What matta writes: whole or not at all."""
