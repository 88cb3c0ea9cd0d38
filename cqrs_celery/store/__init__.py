"""The ports to what keeps events, and the values that pass through them. No I/O of its own."""
