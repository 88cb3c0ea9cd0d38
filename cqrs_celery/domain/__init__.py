"""Aggregates, which make decisions, record events, and are rebuilt from them. No I/O."""
