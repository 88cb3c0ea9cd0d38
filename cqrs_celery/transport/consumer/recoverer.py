"""Recover the messages of dead consumers, and do the queue's other periodic work, in a thread.

The thread that renews the lease only passes the answers to its beats to this one, so no work here
delays a beat. Without work, this thread reads a folder twice a second, and sends nothing to Redis.

- A dead process of this host is found by its lock (see `process_locks`); the messages of its
  consumers are recovered at once.
- Any other consumer counts as dead by its lease and what was seen of it (see `lease_watch`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import redis

from ...clock import elapsed_s
from ...queue.reliable_queue import ReliableQueue
from ...queue.values import Beat
from ..consumer import process_locks, redriving
from ..faults import Faults
from .lease_watch import Answer, Lease, LeaseWatch

logger = logging.getLogger(__name__)

#: Seconds between two searches for dead processes of this host.
LOOK_S = 0.5

#: The interval between two readings of the leases while a consumer is suspected to be dead: the
#: most seconds, and the part of a lease.
WATCH_S, WATCH_PART = 1.0, 1 / 16

#: The most seconds that a consumer's end waits for a recovery under way.
STOP_S = 5.0

#: The most processes of this host that are recovered together, each with an open file.
RECOVERED_AT_ONCE = 100

#: How often Redis is asked for the consumers of a dead process before the process counts as one of
#: another broker.
ASKED = 3

#: Seconds between two searches for the remains of consumers that are gone.
FORGET_S = 3600.0

#: How many descriptions of consumers are read in one command.
READ_AT_ONCE = 500

#: Errors after which Redis may have been away; any other is an answer.
NO_ANSWER = (redis.ConnectionError, redis.TimeoutError)

#: What a step may raise without ending the thread.
_SURVIVED = (Exception, SystemExit, KeyboardInterrupt)


class Recoverer:
    """The work that one consumer does for the others, in a thread.

    Args:
        queue: the queues, on a client that several threads may use.
        name: the consumer's name.
        lease_s: seconds that its lease lasts.
        max_deliveries: a message that came back unfinished this often becomes a dead letter.
        folder: the folder of the locks of this host's processes; None for none.
        upkeep: a step of the queues' upkeep; called after each beat with the consumer's name.
        clock: returns the seconds of a clock that nobody can set.
    """

    def __init__(
        self,
        queue: ReliableQueue,
        *,
        name: str,
        lease_s: float,
        max_deliveries: int,
        folder: Path | None = None,
        upkeep: Callable[[str], None] | None = None,
        clock: Callable[[], float] = elapsed_s,
    ) -> None:
        self._queue = queue
        self._name = name
        self._lease_s = lease_s
        self._max_deliveries = max_deliveries
        self._upkeep = upkeep
        self._clock = clock
        self._watch = LeaseWatch(lease_s)
        self._watch_lock = threading.Lock()
        #: the folders of locks that consumers of this host have named
        self._folders = {folder} if folder is not None else set()
        #: how often Redis was asked for the consumers of a dead process, by the name of its file
        self._asked: dict[str, int] = {}
        #: consumers that are to be recovered, each with the end of its lease
        self._dead: dict[str, float | None] = {}
        self._beat: Beat | None = None
        #: when the remains of consumers that are gone are next searched for
        self._forgets_at = 0.0
        #: whether more dead letters are due than one call has processed
        self._has_letters = False
        #: when the first lease ends, or may be judged, by our clock
        self._look_at = 0.0
        self._news = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None
        self._faults = Faults(logger, of=f"consumer {name}")

    # ------------------------------------------------------------ from the lease's thread

    def note_beat(self, beat: Beat, *, asked: float, got: float, has_beaten: bool = True) -> None:
        """Note the answer to a beat; the recoverer's thread then does what is due.

        Args:
            beat: the queue's answer.
            asked: when the beat was sent, by the clock.
            got: when the answer came, by the clock.
            has_beaten: False for the beat that registered the consumer.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._watch_lock:
            if self._watch.note(Answer(asked, got, beat.now_ms)):
                logger.warning(
                    "Redis's clock was set, or this machine's is wrong: consumer %s judges nobody"
                    " for a lease",
                    self._name,
                    extra={"consumer": self._name},
                )
            ends_at = got + max(0.0, (beat.first_end_ms - beat.now_ms) / 1000)
            # Leases that end too late can wait beyond the first moment: many consumers live no
            # longer than that.
            self._look_at = self._next_look(ends_at) if has_beaten else ends_at + 0.01
        self._beat = beat
        self._news.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name=f"cqrs-recovery-{self._name}", daemon=True
            )
            self._thread.start()

    def note_failure(self) -> None:
        """Note that Redis has not answered."""
        with self._watch_lock:
            self._watch.note_failure()

    def stop(self) -> None:
        """End the thread, after its present step if that takes no longer than `STOP_S`."""
        self._is_stopped = True
        self._news.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            # Another consumer would have to find an interrupted recovery.
            thread.join(STOP_S)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._is_stopped:
            self._news.wait(max(0.0, min(LOOK_S, self._look_at - self._clock())))
            self._news.clear()
            self._turn()

    def _turn(self) -> None:
        """Do what is due."""
        if not self._is_stopped:
            self._attempt("look for dead processes of this host", self.recover_on_host)
        beat, self._beat = self._beat, None
        if beat is not None and beat.expired_queues and not self._is_stopped:
            self._attempt("delete expired queues", self._queue.delete_expired)
        if beat is not None and beat.letters_due:
            self._has_letters = True
        if self._has_letters and not self._is_stopped:
            self._attempt("look after dead letters", self._look_after_letters)
        if beat is not None and self._clock() >= self._forgets_at and not self._is_stopped:
            self._forgets_at = self._clock() + FORGET_S
            self._attempt("forget consumers that are gone", self._queue.forget_gone)
        if beat is not None and self._upkeep is not None and not self._is_stopped:
            self._attempt("do the upkeep of the queues", self._upkeep, self._name)
        is_due = self._look_at <= self._clock() and not self._is_stopped
        if is_due and not self._attempt("look at the leases of others", self._look_at_leases):
            self._look_at = self._clock() + WATCH_S
        if self._dead and not self._is_stopped:
            self._attempt("recover what lost consumers held", self._recover_dead)

    def _look_after_letters(self) -> None:
        """Process a slice of the letters that are due; the next slice follows until none is due."""
        self._has_letters = False
        self._has_letters = redriving.look_after(self._queue.letters)
        if self._has_letters:
            self._news.set()

    def _attempt(self, step: str, function: Callable[..., object], *args: Any) -> bool:
        """Do a step, and note how it ended; False if it failed."""
        try:
            function(*args)
        except _SURVIVED as error:
            if isinstance(error, NO_ANSWER):
                self.note_failure()
            if not self._is_stopped:
                self._faults.note(step, error)
            return False
        self._faults.clear(step)
        return True

    # ------------------------------------------------------------ this host

    def recover_on_host(self) -> None:
        """Recover the messages of consumers of this host whose process has died.

        Raises:
            redis.RedisError: as the driver raised it.
        """
        passed = {name for name, count in self._asked.items() if count >= ASKED}
        dead: list[Path] = []
        for folder in tuple(self._folders):
            # One at a time: there may be more of them than a process may have open files.
            for one in process_locks.dead_in(folder, but=passed):
                with one:
                    dead.append(one.path)
        if not dead:
            return
        names: dict[str, list[str]] = {}
        for name, about in self._told():
            names.setdefault(_file_of(about), []).append(name)
        ours = [path for path in dead if path.name in names]
        for start in range(0, len(ours), RECOVERED_AT_ONCE):
            self._recover_processes(ours[start : start + RECOVERED_AT_ONCE], names)
        for path in dead:
            # Of another broker, or recovered already. A new consumer's description may come late.
            if path.name not in names:
                self._asked[path.name] = self._asked.get(path.name, 0) + 1

    def _recover_processes(self, paths: Iterable[Path], names: Mapping[str, Iterable[str]]) -> None:
        """Recover the messages of dead processes that no other consumer is recovering.

        Args:
            paths: the lock files of the processes.
            names: the consumers of each process, by the name of its file.
        """
        with contextlib.ExitStack() as stack:
            found = [
                stack.enter_context(one)
                for path in paths
                if (one := process_locks.seize(path)) is not None
            ]
            self._recover(dict.fromkeys(n for one in found for n in names[one.path.name]))
            for one in found:
                one.forget()

    def _told(self) -> Iterable[tuple[str, Any]]:
        """Yield what every consumer except this one has said about itself."""
        client: Any = self._queue.client
        for name, text in client.hscan_iter(self._queue.key("about"), count=READ_AT_ONCE):
            if name.decode() != self._name:
                yield name.decode(), _read(text)

    def _learn_folders(self, told: Iterable[Any]) -> None:
        """Remember the folders in which other consumers of this host have their locks."""
        boot = process_locks.boot_id() if self._folders else ""
        for about in told:
            path = Path(process_locks.path_of(about))
            if boot and path.is_absolute() and path.name.startswith(f"{boot}."):
                self._folders.add(path.parent)

    # ------------------------------------------------------------ everywhere

    def _look_at_leases(self) -> None:
        """Read the leases that have ended, and find the dead consumers."""
        asked = self._clock()
        seconds, micros = self._queue.client.time()
        now_ms = seconds * 1000 + micros / 1000
        answer = Answer(asked, self._clock(), now_ms)
        with self._watch_lock:
            self._watch.note(answer)
            is_of_all = self._watch.may_be_beyond
        # Including those that will end before the next beat unless they are renewed.
        before_ms = math.inf if is_of_all else now_ms + self._lease_s * 1000 / 3
        ends = self._queue.lease_ends(before_ms=before_ms)
        ends.pop(self._name, None)
        told = self._told_of([n for n, end in ends.items() if is_of_all or end < now_ms])
        self._learn_folders(told.values())
        leases = {
            name: Lease(ends[name], _lease_of(about, self._lease_s)) for name, about in told.items()
        }
        got = self._clock()
        with self._watch_lock:
            dead = self._watch.judge(answer._replace(got=got), leases)
            # The next beat brings a newer value.
            first = min((end for end in ends.values() if end >= now_ms), default=math.inf)
            self._look_at = self._next_look(got + min(self._lease_s, (first - now_ms) / 1000))
        self._dead |= dead | self._dead_by_lock(leases, told)

    def _recover_dead(self) -> None:
        self._recover(self._dead)
        self._dead = {}

    def _next_look(self, first_ends_at: float) -> float:
        """Return when the leases must be read next.

        Args:
            first_ends_at: when the first of them ends, by this machine's clock.
        """
        soon = self._clock() + 0.01
        if self._watch.is_watching:
            step_s = min(WATCH_S, self._lease_s * WATCH_PART)
            return min(max(self._watch.due_at(), soon), soon + step_s)
        if self._watch.may_be_beyond:
            return max(self._watch.due_at(), soon)
        return first_ends_at + 0.01

    def _told_of(self, names: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        client: Any = self._queue.client
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            texts = client.hmget(self._queue.key("about"), some)
            found.update({name: _read(text) for name, text in zip(some, texts, strict=True)})
        return found

    def _dead_by_lock(
        self, leases: Mapping[str, Lease], told: Mapping[str, Any]
    ) -> dict[str, float | None]:
        """Return the consumers whose process has died on this host, wherever its lock is."""
        dead: dict[str, float | None] = {}
        for name, lease in leases.items():
            path = process_locks.path_of(told.get(name))
            found = process_locks.seize(path) if path else None
            if found is not None:
                with found:
                    dead[name] = lease.end_ms
        return dead

    def _recover(self, ended: Mapping[str, float | None]) -> None:
        for one in self._queue.recover(ended=ended, most_tries=self._max_deliveries):
            logger.log(
                logging.ERROR if one.dead_letters else logging.WARNING,
                "recovered %d messages of the lost consumer %s; %d of them, delivered too often,"
                " became dead letters",
                one.messages,
                one.consumer,
                one.dead_letters,
                extra={
                    "consumer": one.consumer,
                    "messages": one.messages,
                    "dead_letters": one.dead_letters,
                },
            )


def _read(text: bytes | None) -> Any:
    try:
        return msgspec.json.decode(text or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _file_of(about: Any) -> str:
    return Path(process_locks.path_of(about)).name


def _lease_of(about: Any, default_s: float) -> float:
    lease_s = about.get("lease_s") if isinstance(about, dict) else None
    return float(lease_s) if isinstance(lease_s, (int, float)) else default_s
