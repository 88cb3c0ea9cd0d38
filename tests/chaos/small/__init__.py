"""Every interleaving of a few operations on a small queue, on a real server, against a model.

`model` says what must come of an operation, `server` does it with the queue's own scripts, `walk`
goes through the states that can be reached. This room knows the queue alone.
"""
