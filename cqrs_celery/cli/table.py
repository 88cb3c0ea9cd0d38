"""Print rows as a plain table, with numbers aligned to the right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import click


def plain(value: object, *, keeps_lines: bool = False) -> str:
    """Return a value as text that can't control a terminal: its control characters are escaped.

    Args:
        value: the value to print, such as an id chosen by somebody else.
        keeps_lines: True to keep line ends and tabs, for a text of several lines.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if keeps_lines else ""
    return "".join(
        one if one in kept or unicodedata.category(one) not in _ACTIVE else _escaped(one)
        for one in text
    )


#: Unicode's categories of invisible characters with an effect: controls, directions, line ends, and
#: halves of surrogate pairs.
_ACTIVE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", errors="backslashreplace").decode()


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; print "nothing" if there are no rows."""
    if not rows:
        click.echo("nothing")
        return
    lines = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *lines]) for i in range(len(head))]
    is_number = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    click.echo("  ".join(_cell(h, w, n) for h, w, n in zip(head, widths, is_number, strict=True)))
    click.echo("  ".join("-" * width for width in widths))
    for line in lines:
        cells = zip(line, widths, is_number, strict=True)
        click.echo("  ".join(_cell(*cell) for cell in cells).rstrip())


def _cell(text: str, width: int, is_number: bool) -> str:
    return text.rjust(width) if is_number else text.ljust(width)
