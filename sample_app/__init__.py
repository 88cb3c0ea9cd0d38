"""A small shop's inventory, built with cqrs_celery: what a program of your own looks like.

domain.py       what the shop decides, and by which rules
events.py       what has happened
commands.py     what it can be asked to do, and to tell
handlers.py     who does it, and who answers
read_model.py   the stock in SQLite, kept by a subscription
app.py          the Celery application; its settings are in `celeryconfig.py` at the top

`python -m sample_app.demo` shows it, `python -m sample_app.run` keeps it running.
"""
