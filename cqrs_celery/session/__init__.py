"""The unit of work: load aggregates, change them, commit them all at once or not at all."""
