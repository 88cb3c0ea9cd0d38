"""Check the transport options before anything connects, so that a wrong one is reported early."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kombu.transport import redis as stock

from ..errors import InvalidSetting
from ..whole_numbers import is_whole

#: The Celery setting that contains the options.
SETTING = "broker_transport_options"

#: Our numeric options, each with its least value and whether it must be a whole number.
OPTIONS: Mapping[str, tuple[float, bool]] = {
    "lease_s": (0.5, False),
    "max_deliveries": (1, True),
    "max_run": (1, True),
    "dedup_ttl_s": (1, False),
    "max_expanded_bytes": (1, True),
}

#: Our options that are text.
TEXT_OPTIONS = frozenset({"lock_folder"})

#: The transport options that Kombu reads: in its channels, in its loop, and in its connection when
#: it connects or publishes again.
KOMBU_OPTIONS = frozenset(
    (
        *stock.SentinelChannel.from_transport_options,
        "polling_interval",
        "reauth_check_interval",
        "retry",
        "retry_on_error",
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
        "connect_retries_timeout",
        "errback",
        "callback",
    )
)

#: How similar an unknown option must be to a known one to count as misspelt, from 0 to 1.
_LIKENESS = 0.8


class _Accepted(NamedTuple):
    """The values that an option accepts, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_steps(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(is_whole(step, at_least=0) for step in value)
        and list(value) == sorted(set(value))
    )


_WAIT = _Accepted(
    "a number of seconds above 0, or None",
    lambda value: value is None or (_is_number(value) and value > 0),
)
_TEXT = _Accepted("text", lambda value: isinstance(value, str))
_TEXT_OR_NONE = _Accepted("text, or None", lambda value: value is None or isinstance(value, str))
_FOLDER = _Accepted(
    "the absolute path of a folder, or None",
    lambda value: value is None or (isinstance(value, str) and Path(value).is_absolute()),
)
_DICT_OR_NONE = _Accepted("a dict, or None", lambda v: v is None or isinstance(v, Mapping))

#: Our text options, and Kombu's options whose wrong values would otherwise fail later, with an
#: error that does not name the option.
_TESTED: Mapping[str, _Accepted] = {
    "lock_folder": _FOLDER,
    "queue_order_strategy": _Accepted(
        "'round_robin', 'sorted' or 'priority'",
        lambda value: value in ("round_robin", "sorted", "priority"),
    ),
    "priority_steps": _Accepted("a list of whole numbers from 0, each above the last", _are_steps),
    "socket_timeout": _WAIT,
    "socket_connect_timeout": _WAIT,
    "socket_keepalive_options": _DICT_OR_NONE,
    "sentinel_kwargs": _DICT_OR_NONE,
    "max_connections": _Accepted(
        "a whole number from 1, or None",
        lambda value: value is None or is_whole(value, at_least=1),
    ),
    "health_check_interval": _Accepted(
        "a number of seconds from 0", lambda value: _is_number(value) and value >= 0
    ),
    "global_keyprefix": _TEXT,
    "sep": _Accepted(
        "text that is not empty", lambda value: isinstance(value, str) and bool(value)
    ),
    "client_name": _TEXT_OR_NONE,
    "deadletter_queue": _TEXT_OR_NONE,
}


def check_options(options: Any) -> None:
    """Check `broker_transport_options`.

    Args:
        options: the options as they are set. An unknown option that resembles no known one is
            ignored, since other code may read it.

    Raises:
        InvalidSetting: the options are not a dict, an option has a value that is not accepted, or
            an option seems to be misspelt.
    """
    check_is_dict(options)
    for name, value in options.items():
        if name in OPTIONS:
            _check_own(name, value, *OPTIONS[name])
        elif name in _TESTED:
            if not _TESTED[name].fits(value):
                raise _invalid(name, value, _TESTED[name].words)
        elif name not in KOMBU_OPTIONS:
            _check_name(name)


def check_is_dict(options: Any) -> None:
    """Check that the transport options are a dict, as Celery assumes.

    Args:
        options: the options as they are set.

    Raises:
        InvalidSetting: they are not a dict.
    """
    if not isinstance(options, Mapping):
        raise InvalidSetting(
            f"the setting {SETTING} is {options!r}; accepted: a dict of options",
            setting=SETTING,
            accepted="a dict of options",
        )


def _check_name(name: Any) -> None:
    known = sorted({*OPTIONS, *TEXT_OPTIONS, *KOMBU_OPTIONS})
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=_LIKENESS)
    if close:
        raise InvalidSetting(
            f"{SETTING} has {name!r}; did you mean {close[0]!r}?",
            setting=f"{SETTING}[{name!r}]",
            accepted=", ".join(known),
        )


def _check_own(name: str, value: Any, least: float, must_be_whole: bool) -> None:
    is_of_type = is_whole if must_be_whole else _is_number
    if not (is_of_type(value) and value >= least):
        raise _invalid(name, value, f"a {'whole ' if must_be_whole else ''}number from {least:g}")


def _invalid(name: str, value: Any, accepted: str) -> InvalidSetting:
    return InvalidSetting(
        f"{SETTING}[{name!r}] is {value!r}; accepted: {accepted}",
        setting=f"{SETTING}[{name!r}]",
        accepted=accepted,
    )
