"""Handlers and subscriptions: how they are declared, found and run."""
