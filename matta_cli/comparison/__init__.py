"""Any models of one task, compared on the same examples."""
