"""Print rows as a plain table, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

import click


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; says so where there are no rows."""
    if not rows:
        click.echo("nothing")
        return
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *lines]) for i in range(len(head))]
    is_number = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    click.echo("  ".join(_cell(h, w, n) for h, w, n in zip(head, widths, is_number, strict=True)))
    click.echo("  ".join("-" * width for width in widths))
    for line in lines:
        cells = zip(line, widths, is_number, strict=True)
        click.echo("  ".join(_cell(*cell) for cell in cells).rstrip())


def _cell(text: str, width: int, is_number: bool) -> str:
    return text.rjust(width) if is_number else text.ljust(width)
