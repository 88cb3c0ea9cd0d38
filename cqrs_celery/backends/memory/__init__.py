"""The engine that keeps everything in this process, for tests and experiments."""
