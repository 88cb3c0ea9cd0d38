"""Keep events in Redis or Valkey, in the broker's own database: commit and delivery are one step."""
