"""Check that Redis deletes nothing by itself: what it evicts is gone, and nobody gets an error.

With a limit to its memory and any policy but noeviction, a full server deletes messages and events
to make room, or the ids by which a repeated publish or command is known. With noeviction it refuses
to publish, and keeps everything.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import redis
from redis.exceptions import ResponseError

from ..errors import InvalidSetting

logger = logging.getLogger(__name__)

#: The policy that deletes nothing.
NOEVICTION = "noeviction"

#: Returns for INFO and for CONFIG GET whether the user may run it; nil before Redis 7.0, which
#: can't be asked. A command that is refused would stand in the server's ACL LOG.
_MAY_TELL = """
local may = redis.acl_check_cmd
return may and {may('INFO', 'memory') and 1 or 0, may('CONFIG', 'GET', 'maxmemory*') and 1 or 0}
"""

#: The servers of which this process has been warned, or need not be.
_looked_at: set[str] = set()

#: What this process's workers have said of which servers, with the policy: said once, however often
#: they connect anew.
_said: set[tuple[str, str]] = set()

#: Whether a worker has begun to consume in this process.
_has_consumed = False


class Memory(NamedTuple):
    """What a server does when its memory is full.

    Attributes:
        policy: its maxmemory-policy.
        limit: its maxmemory in bytes; 0 for none.
    """

    policy: str
    limit: int

    @property
    def evicts(self) -> bool:
        """Whether it deletes keys once its limit is reached."""
        return self.policy != NOEVICTION


def memory_of(client: redis.Redis) -> Memory | None:
    """Return what a server does when its memory is full; None if it does not tell.

    Args:
        client: its client. A user who may not read the configuration may read INFO, as a rule.
    """
    any_client: Any = client
    ways = (
        lambda: any_client.info("memory"),
        lambda: {
            name.replace("-", "_"): value
            for name, value in _texts(any_client.config_get("maxmemory*")).items()
        },
    )
    for read, may in zip(ways, _allowed(any_client), strict=True):
        if not may:
            continue
        try:
            found = read()
            return Memory(str(found["maxmemory_policy"]), int(found["maxmemory"]))
        except (ResponseError, KeyError, ValueError):
            continue
    return None


def _allowed(client: Any) -> list[int]:
    """Return for INFO and for CONFIG GET whether it is worth a try."""
    try:
        return client.eval(_MAY_TELL, 0) or [1, 1]
    except ResponseError:
        return [1, 1]


def _texts(found: dict[Any, Any]) -> dict[str, str]:
    return {
        str(key.decode() if isinstance(key, bytes) else key): str(
            value.decode() if isinstance(value, bytes) else value
        )
        for key, value in found.items()
    }


def check_worker(client: redis.Redis, where: str) -> None:
    """End a worker that begins to consume from a server that deletes messages.

    One that has consumed before, and comes to such a server by a failover, says so and goes on:
    there is no other to go to.

    Args:
        client: the server's client.
        where: names it, without credentials.

    Raises:
        SystemExit: it does; the line in the log says what to change.
    """
    global _has_consumed
    _looked_at.add(where)
    memory = memory_of(client)
    if memory is None and _is_news(where, ""):
        logger.warning(
            "the server %s does not tell its maxmemory-policy: make sure that it is %s, or messages"
            " are deleted when its memory is full",
            where,
            NOEVICTION,
            extra={"server": where},
        )
    elif memory is not None and memory.evicts and memory.limit:
        error = refusal(memory, where)
        if not _has_consumed:
            logger.critical("the worker can't start: %s", error)
            raise SystemExit(1) from error
        logger.critical("messages may be lost: %s", error)
    elif memory is not None and memory.evicts and _is_news(where, memory.policy):
        logger.warning(
            "the server %s has the maxmemory-policy %s: as soon as it gets a maxmemory, it deletes"
            " messages. Set it to %s",
            where,
            memory.policy,
            NOEVICTION,
            extra={"server": where, "policy": memory.policy},
        )
    _has_consumed = True


def _is_news(where: str, policy: str) -> bool:
    said = (where, policy)
    is_news = said not in _said
    _said.add(said)
    return is_news


def warn_sender(client: redis.Redis, where: str) -> None:
    """Warn once a process that what it sends, or stores, may be deleted by the server.

    Args:
        client: the server's client. Whatever it answers, nothing fails.
        where: names it, without credentials.
    """
    if where in _looked_at:
        return
    _looked_at.add(where)
    try:
        memory = memory_of(client)
    except (redis.RedisError, OSError):
        # It is asked anew by the next one who connects.
        _looked_at.discard(where)
        return
    if memory is not None and memory.evicts and memory.limit:
        logger.warning("messages may be lost: %s", refusal(memory, where))


def refusal(memory: Memory, where: str) -> InvalidSetting:
    """Return the error that says what a server would do, and what to set."""
    return InvalidSetting(
        f"the server {where} has the maxmemory-policy {memory.policy} and a maxmemory of"
        f" {memory.limit} bytes: when that is full, it deletes messages, events, or the ids that"
        f" keep a command from being carried out twice. Accepted: {NOEVICTION}, with which it"
        f" refuses to publish, and keeps everything. CONFIG SET maxmemory-policy {NOEVICTION}, and"
        " set it in the server's configuration",
        setting="maxmemory-policy",
        accepted=NOEVICTION,
    )
