"""The engine that keeps events in the broker's own Redis: commit and delivery are one step."""
