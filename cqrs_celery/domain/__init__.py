"""Where decisions are made: aggregates, which record events and are rebuilt from them. No I/O."""
