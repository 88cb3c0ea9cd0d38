"""Benchmarks: each starts its own servers, and prints a table."""
