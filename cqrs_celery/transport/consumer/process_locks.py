"""Find out whether a process of this host has died, by a file that it locked when it began.

The kernel releases an `flock` when the last descriptor of the opened file is closed: after the
process, and every child that it has forked since, have died. A stopped process keeps its lock, and
a zombie has none. It does not matter whether other processes are visible (hidepid). So a process is
dead if, and only if, its file is found and its lock can be taken. If there is no file, or it can't
be read, nothing is known: the process may be on another host, in a container with its own file
system, or another user's.

The files are in a folder that only their owner may use. Their names are `<boot id>.<pid>-<random>`.
The boot id differs for each start of a kernel, so nobody judges a lock of another kernel. Names are
never reused, so a process's file may be removed at any time once its messages were recovered.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows, where no process has a lock
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

#: The file with the id of the kernel's present run, the same in all its containers.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: The file that lists the mounted file systems.
MOUNTS = Path("/proc/self/mountinfo")

#: File systems on which a lock may be lost while its process lives. The same goes for every type
#: that begins with fuse.
UNSAFE_FILE_SYSTEMS = frozenset({
    "9p", "afs", "ceph", "cifs", "gfs2", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
    "virtiofs",
})  # fmt: skip

#: The text in place of the boot id in the name of a file that is not locked yet.
UNLOCKED = "new"

#: Seconds after which the file of a dead process is removed even if nobody has recovered it.
KEPT_S = 86_400.0


#: An escaped character in the name of a mount point, such as a space.
_OCTAL = re.compile(r"\\([0-7]{3})")


class UnusableFolder(OSError):
    """A folder can't be used for locks; the text says why."""


class ProcessLock:
    """The lock of this process, held until the process and all children that it forks have ended.

    Args:
        path: its file.
        descriptor: the descriptor of the locked file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.pid = os.getpid()
        #: the consumers that would have to be recovered if the process died
        self.users: set[str] = set()
        self._descriptor = descriptor

    @property
    def facts(self) -> dict[str, str]:
        """The values by which others find the lock; part of a consumer's description."""
        return {"lock": str(self.path)}

    def touch(self) -> None:
        """Update the file's time, so that no cleaning by age removes it."""
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)

    def remove_if_unused(self) -> None:
        """Remove the file if no consumer needs it; called at the end of the process."""
        if self.pid == os.getpid() and not self.users:
            self.path.unlink(missing_ok=True)


class DeadProcess:
    """The lock of a dead process; no other process can take it until this one is closed.

    Args:
        path: its file.
        descriptor: the descriptor of the locked file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @property
    def age_s(self) -> float:
        """The seconds since the file was last used."""
        return time.time() - os.fstat(self._descriptor).st_mtime

    def forget(self) -> None:
        """Remove the file, after the process's messages were recovered."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def boot_id(path: Path = BOOT_ID) -> str:
    """Return the id of the kernel's present run; empty if there is none, as on macOS."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def default_folder() -> Path:
    """Return the folder of the locks if none is set."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute():
        return Path(runtime) / "cqrs-celery"
    return Path(tempfile.gettempdir()) / f"cqrs-celery-{os.geteuid()}"


# ---------------------------------------------------------------- one's own

#: The locks of this process and of those that forked it: never closed.
_locks: list[ProcessLock] = []

#: Folders that can't be used; a warning was logged for each.
_unusable: set[Path] = set()


def hold(folder: str | Path | None = None) -> ProcessLock | None:
    """Return the lock of this process, taken at the first call; None if it can't have one.

    Call it before children are forked, so that they hold the lock too. A child that calls it gets a
    lock of its own.

    Args:
        folder: the folder of the locks, made if needed; None for the default.
    """
    for lock in _locks:
        if lock.pid == os.getpid():
            return lock
    boot = boot_id()
    place = Path(folder) if folder else default_folder()
    if not boot or place in _unusable:
        return None
    try:
        lock = _new_lock(place, boot)
    except OSError as error:
        _unusable.add(place)
        logger.warning(
            "no lock in %s (%s): when this worker dies, its messages come back after its lease, not"
            " at once. Set the transport option lock_folder to a local folder that only this user"
            " may use",
            place,
            error,
            extra={"folder": str(place)},
        )
        return None
    _locks.append(lock)
    atexit.register(lock.remove_if_unused)
    return lock


def _new_lock(folder: Path, boot: str) -> ProcessLock:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with opened(folder) as place:
        _clean_up(folder, place, boot)
        name = f"{boot}.{os.getpid()}-{uuid4().hex}"
        # Not under its final name: another process could take the lock between the two steps.
        unlocked = name.replace(boot, UNLOCKED, 1)
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=place)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unlocked, name, src_dir_fd=place, dst_dir_fd=place)
        except OSError:
            os.close(descriptor)
            os.unlink(unlocked, dir_fd=place)
            raise
    return ProcessLock(folder / name, descriptor)


def _clean_up(folder: Path, place: int, boot: str) -> None:
    """Remove files that were not used for long: those of other boots and of dead processes."""
    with contextlib.suppress(OSError):
        for name in _names(place):
            age_s = time.time() - os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime
            if "." not in name or age_s < KEPT_S:
                continue
            if name.startswith(f"{boot}."):
                found = _seize(folder, place, name)
                if found is not None:
                    with found:
                        found.forget()
            else:
                os.unlink(name, dir_fd=place)


# ---------------------------------------------------------------- those of others


#: The types of file systems, by device.
_kinds: dict[int, str] = {}


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Yield a descriptor of a folder in which locks may be kept.

    Raises:
        UnusableFolder: the folder is not this user's alone, or it is on a file system whose locks
            may be lost.
        OSError: it does not exist, or is not a folder.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(place)
        if found.st_uid != os.geteuid():
            raise UnusableFolder(errno.EPERM, f"its owner is user {found.st_uid}", str(folder))
        if stat.S_IMODE(found.st_mode) & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise UnusableFolder(errno.EPERM, f"its mode is {mode:o}, expected 700", str(folder))
        kind = _kinds.get(found.st_dev)
        if kind is None:
            kind = _kinds[found.st_dev] = file_system_of(folder)
        if kind in UNSAFE_FILE_SYSTEMS or kind.startswith("fuse"):
            raise UnusableFolder(errno.ENOTSUP, f"it is on a file system {kind}", str(folder))
        yield place
    finally:
        os.close(place)


def file_system_of(folder: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the file system that a folder is on; empty if that is unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    there, kind, longest = str(folder.resolve()), "", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4]).rstrip("/")
        # If two are mounted on one point, the later one covers the other.
        if (there == point or there.startswith(f"{point}/")) and len(point) >= longest:
            kind, longest = after.split(" ")[0], len(point)
    return kind


def seize(path: str | Path) -> DeadProcess | None:
    """Return the lock of a dead process; None if the process lives or nothing is known.

    Args:
        path: its file, as its consumers have described it.
    """
    file, boot = Path(path), boot_id()
    if not boot or not file.name.startswith(f"{boot}.") or not file.is_absolute():
        return None
    # A ValueError: the path contains a NUL.
    with contextlib.suppress(OSError, ValueError), opened(file.parent) as place:
        return _seize(file.parent, place, file.name)
    return None


def dead_in(folder: Path, *, but: Collection[str] = ()) -> Iterator[DeadProcess]:
    """Yield the lock of each dead process of a folder; the caller must close it.

    Args:
        folder: the folder to search; nothing is found if it can't be used.
        but: the names of files to skip.
    """
    boot = boot_id()
    mine = {lock.path.name for lock in _locks}
    with contextlib.suppress(OSError), opened(folder) as place:
        for name in _names(place):
            if boot and name.startswith(f"{boot}.") and name not in mine and name not in but:
                found = _seize(folder, place, name)
                if found is not None:
                    yield found


def _names(place: int) -> list[str]:
    with os.scandir(place) as entries:
        return [entry.name for entry in entries]


def _seize(folder: Path, place: int, name: str) -> DeadProcess | None:
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except OSError:
        return None
    is_got = False
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            # If the lock is held, or the file system has no locks, this raises an OSError.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_got = True
    if not is_got:
        os.close(descriptor)
        return None
    return DeadProcess(folder / name, descriptor)


def path_of(about: Any) -> str:
    """Return the path of a process's lock file, as its consumer has described it; empty if none."""
    path = about.get("lock") if isinstance(about, dict) else None
    return path if isinstance(path, str) else ""
