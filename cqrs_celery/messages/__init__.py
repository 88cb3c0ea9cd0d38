"""Commands, queries, events and messages, and how they become bytes.

Messages are typed, frozen, and registered by name and version. Nothing here does I/O.
"""
