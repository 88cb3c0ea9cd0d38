"""What a stranger has chosen does nothing to the terminal that shows it."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from cqrs_celery.cli import cqrs
from cqrs_celery.cli.table import plain, print_table
from cqrs_celery.errors import CQRSError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("orders", "orders"),
        ("Größe 🔩", "Größe 🔩"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc\x00\x7f", r"a\r\nb\tc\x00\x7f"),
        ("\u202eabc\u2028", r"\u202eabc\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_shown_escaped(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(text) == shown
    print_table(["id"], [[text]])
    assert capsys.readouterr().out.splitlines()[2] == shown


def test_a_text_of_several_lines_keeps_them_alone() -> None:
    assert plain("one\n\ttwo\x1b[0m\r", keeps_lines=True) == "one\n\ttwo\\x1b[0m\\r"


@pytest.mark.parametrize("kind", [click.ClickException, click.UsageError, CQRSError])
def test_an_error_that_quotes_a_stranger_does_nothing_to_the_terminal(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a command that refuses something, and names what was found
    @click.command()
    def refuse() -> None:
        raise kind("there are:\norders\x1b[2J\x9b31m")

    monkeypatch.setitem(cqrs.commands, "refuse", refuse)
    # when it is run, then what it says is shown, and does nothing
    said = CliRunner().invoke(cqrs, ["refuse"]).output
    assert "there are:\norders\\x1b[2J\\x9b31m\n" in said
