"""SQLite: a single writer, and events in one file."""
