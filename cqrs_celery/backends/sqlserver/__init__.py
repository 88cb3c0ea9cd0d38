"""What is SQL Server's own: locks by hint, and the order of commits by row version."""
