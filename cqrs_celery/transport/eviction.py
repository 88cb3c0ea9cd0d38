"""Check that Redis does not evict keys: evicted data is lost, and nobody gets an error.

If its memory is limited, a full server with any policy but noeviction deletes messages, events, or
the ids by which a repeated publish or command is recognised. With noeviction it refuses to publish,
and keeps everything.
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

#: Returns whether the user may run INFO and CONFIG GET; nil before Redis 7.0, which can't be asked.
#: Trying a forbidden command would leave an entry in the server's ACL LOG.
_MAY_TELL = """
local may = redis.acl_check_cmd
return may and {may('INFO', 'memory') and 1 or 0, may('CONFIG', 'GET', 'maxmemory*') and 1 or 0}
"""

#: The servers that this process has checked.
_looked_at: set[str] = set()

#: The warnings that this process's workers have logged, by server and policy: each is logged once,
#: however often they reconnect.
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
        client: its client. A user who may not read the configuration can usually read INFO.
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
    """Return whether INFO, and whether CONFIG GET, should be tried; 0 stands for no."""
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

    If the worker has consumed before, and reaches such a server by a failover, it logs the danger
    and goes on: there is no other server.

    Args:
        client: the server's client.
        where: the server's address, without credentials.

    Raises:
        SystemExit: the server deletes messages when its memory is full; the log says what to
            change.
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
    """Log once per process and server that the server may delete what is sent or stored there.

    Args:
        client: the server's client. Whatever it answers, nothing fails.
        where: the server's address, without credentials.
    """
    if where in _looked_at:
        return
    _looked_at.add(where)
    try:
        memory = memory_of(client)
    except (redis.RedisError, OSError):
        # The next connection asks again.
        _looked_at.discard(where)
        return
    if memory is not None and memory.evicts and memory.limit:
        logger.warning("messages may be lost: %s", refusal(memory, where))


def refusal(memory: Memory, where: str) -> InvalidSetting:
    """Return the error that says what the server would do, and what to set.

    Args:
        memory: what the server does when its memory is full.
        where: the server's address, without credentials.
    """
    return InvalidSetting(
        f"the server {where} has the maxmemory-policy {memory.policy} and a maxmemory of"
        f" {memory.limit} bytes: when that is full, it deletes messages, events, or the ids that"
        f" keep a command from being carried out twice. Accepted: {NOEVICTION}, with which it"
        f" refuses to publish, and keeps everything. CONFIG SET maxmemory-policy {NOEVICTION}, and"
        " set it in the server's configuration",
        setting="maxmemory-policy",
        accepted=NOEVICTION,
    )
