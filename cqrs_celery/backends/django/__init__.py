"""Django: events in one of its databases, and in its transactions."""
