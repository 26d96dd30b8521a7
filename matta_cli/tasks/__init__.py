"""The kinds of output: a folder for each, with its task and its examples."""
