"""SQL Server: locks by hint, and the order of commits by row version."""
