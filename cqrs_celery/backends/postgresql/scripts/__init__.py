"""The SQL of the PostgreSQL store, one operation a file. A migration installs it."""
