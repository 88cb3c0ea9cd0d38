"""How the package's optional parts are installed, as errors put it.

The package is on no index yet, so pip finds its extras only in a checkout of it.
"""

from __future__ import annotations


def how_to_install(extra: str, *others: str) -> str:
    """Return the command that installs an extra of this package, and where to run it.

    Args:
        extra: its name, as "postgresql".
        others: packages that are needed besides.
    """
    quoted = f"'.[{extra}]'"
    return f"{' '.join(['pip install', quoted, *others])}, in a checkout of cqrs-celery"
