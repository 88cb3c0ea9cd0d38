"""Load a package's Lua scripts: one operation per file, shared pieces in files that begin with `_`.

The first line of a script, `--!include _a _b`, names the pieces that are put in front of it. A
script runs by its hash. If the server does not know the hash, as after a restart or a failover, it
gets the text again.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import redis

_INCLUDE = "--!include "
_HOME = "cqrs_celery.queue.scripts"


class Script:
    """One Lua operation, run by its hash, and loaded if the server does not know it.

    Args:
        name: the script's name, for `repr`.
        text: its source.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Run the script once.

        Args:
            client: the connection to run on.
            keys: the script's `KEYS`; they route it to its slot on Redis Cluster.
            args: the script's `ARGV`.

        Returns:
            The result that the script's header describes.

        Raises:
            redis.RedisError: as the driver raised it.
        """
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)

    def call_many(self, client: redis.Redis, keys: list[str], calls: list[list[Any]]) -> list[Any]:
        """Run the script once for each list of arguments, in order and in one round trip.

        If the server does not know the script, no call has run, and all are sent again.

        Args:
            client: the connection to run on.
            keys: `KEYS` of every call.
            calls: `ARGV` of each call.

        Returns:
            What each call returned.

        Raises:
            redis.RedisError: the first error of any call; other calls may have run.
        """
        for is_known in (False, True):
            with client.pipeline(transaction=False) as pipe:
                for args in calls:
                    pipe.evalsha(self.sha, len(keys), *keys, *args)
                results = pipe.execute(raise_on_error=False)
            errors = [result for result in results if isinstance(result, Exception)]
            if not errors:
                return results
            if is_known or not isinstance(errors[0], redis.exceptions.NoScriptError):
                raise errors[0]
            client.script_load(self.text)
        raise AssertionError("the loop returns or raises")

    def __repr__(self) -> str:
        return f"<Script {self.name}>"


@cache
def load(name: str, package: str = _HOME) -> Script:
    """Load a script, with the pieces that it includes in front of it.

    Args:
        name: the file's name without `.lua`.
        package: the package that holds it; pieces always come from the queue's own.
    """
    text = files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    first, _, _ = text.partition("\n")
    pieces = first[len(_INCLUDE) :].split() if first.startswith(_INCLUDE) else []
    shared = [files(_HOME).joinpath(f"{piece}.lua").read_text(encoding="utf-8") for piece in pieces]
    # Each piece encloses what follows it. Lua resolves a local of an enclosing function directly;
    # for a local of the same function it searches all locals that closures use already.
    whole = "\nreturn (function()\n".join([*shared, text])
    return Script(name, whole + "\nend)()" * len(shared))
