"""The ports of event stores, and the values that pass through them. No I/O of its own."""
