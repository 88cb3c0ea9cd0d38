"""What is SQLite's own: a single writer, and events in one file."""
