"""Keep events in Redis, in the broker's own database: commit and delivery are one step."""
