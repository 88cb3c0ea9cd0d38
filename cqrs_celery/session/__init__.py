"""The unit of work: load aggregates, change them, and commit all of them or none."""
