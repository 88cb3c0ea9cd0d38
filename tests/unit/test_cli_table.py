"""What a stranger has chosen does nothing to the terminal that shows it."""

from __future__ import annotations

import pytest

from cqrs_celery.cli.table import plain, print_table


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
