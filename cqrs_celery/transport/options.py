"""Check the transport options that are ours: a wrong one is said at once, not in the middle."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InvalidSetting

#: Our options, each with the least value that it accepts and whether it is a whole number.
OPTIONS: Mapping[str, tuple[float, bool]] = {
    "lease_s": (0.5, False),
    "max_deliveries": (1, True),
    "max_run": (1, True),
    "dedup_ttl_s": (1, False),
}

#: How alike an unknown option must be to one of ours to be taken for a slip of the pen.
_LIKENESS = 0.8


def check_options(options: Mapping[str, Any], *, known: Collection[str]) -> None:
    """Check `broker_transport_options`.

    Args:
        options: as they are set.
        known: every option that the transport reads; others are passed over, as Kombu does.

    Raises:
        InvalidSetting: one of ours has a value that is not accepted, or seems to be misspelt.
    """
    for name, value in options.items():
        if name in OPTIONS:
            _check_value(name, value, *OPTIONS[name])
        elif name not in known:
            close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=_LIKENESS)
            if close:
                raise InvalidSetting(
                    f"broker_transport_options has {name!r}; did you mean {close[0]!r}?",
                    setting=f"broker_transport_options[{name!r}]",
                    accepted=", ".join(OPTIONS),
                )


def _check_value(name: str, value: Any, least: float, is_whole: bool) -> None:
    types = (int,) if is_whole else (int, float)
    if isinstance(value, types) and not isinstance(value, bool) and value >= least:
        return
    accepted = f"a {'whole ' if is_whole else ''}number from {least:g}"
    raise InvalidSetting(
        f"broker_transport_options[{name!r}] is {value!r}; accepted: {accepted}",
        setting=f"broker_transport_options[{name!r}]",
        accepted=accepted,
    )
