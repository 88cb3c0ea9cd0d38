"""Hours of work by workers of which some are killed: nothing may grow that has no reason to.

`__main__` runs it, `load` has the servers and the work, `flatness` judges, `plot` draws.
"""
