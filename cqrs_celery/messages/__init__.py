"""What is sent and stored: commands, queries, events, messages, and how they become bytes.

Values are typed, frozen and registered by name and version; nothing here does I/O.
"""
