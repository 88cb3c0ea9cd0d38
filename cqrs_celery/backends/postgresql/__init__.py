"""PostgreSQL: appends by one database function, and reads that know which appends are open."""
