"""Benchmarks: each explains itself on stderr and prints one JSON object as the last line of stdout.

Run one as ``python -m benchmarks.NAME [--quick]`` from the project's folder.
"""
