"""Kombu's and Celery's own integration suites, against stock Redis and against ours in one run.

    python -m tests.conformance

The suites come from the sdists of the installed versions, by pip, into `.conformance/`, which git
ignores. Nothing of them is kept in this project. Plain pytest collects nothing here.
"""
