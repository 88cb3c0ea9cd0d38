"""How to install the package's optional dependencies, for the text of errors.

The package is not on a package index yet, so pip finds its extras only in a checkout.
"""

from __future__ import annotations


def how_to_install(extra: str, *others: str) -> str:
    """Return the command that installs an extra of this package, and where to run it.

    Args:
        extra: the extra's name, such as "postgresql".
        others: further packages to install with it.
    """
    quoted = f"'.[{extra}]'"
    return f"{' '.join(['pip install', quoted, *others])}, in a checkout of cqrs-celery"
