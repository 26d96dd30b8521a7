"""What tasks share whose models read texts: tokens, and models that have tokens of their own."""
