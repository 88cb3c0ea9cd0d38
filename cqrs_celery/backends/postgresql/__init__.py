"""What is PostgreSQL's own: one function that appends, and a reader that knows who still writes."""
