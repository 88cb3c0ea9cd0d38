"""What is Django's: the events are in one of its databases, and in its transactions."""
