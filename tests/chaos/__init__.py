"""Long random runs that are too slow for every commit; `python -m tests.chaos` runs them."""
