"""A process is dead if its file is found and its lock is got; of anything else nothing is known."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqrs_celery.transport.consumer import process_locks
from cqrs_celery.transport.consumer.process_locks import (
    dead_in,
    file_system_of,
    hold,
    opened,
    seize,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not process_locks.boot_id(), reason="no boot id here, so no process has a lock"
)

#: A process that has a lock, and prints its file. With a second argument, a child of it lives on.
HOLDER = """
import os, sys, time
from cqrs_celery.transport.consumer import process_locks
lock = process_locks.hold(sys.argv[1])
lock.users.add("anna")
child = os.fork() if len(sys.argv) > 2 else None
if child != 0:
    print(lock.path, child or "", flush=True)
time.sleep(600)
"""


class Holder:
    """A process of its own that holds a lock."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        path, _, child = self.process.stdout.readline().strip().partition(" ")
        self.path = Path(path)
        self.child = int(child) if child else None

    def kill(self) -> None:
        """Kill the process, and leave it a zombie until the test's end."""
        os.kill(self.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End everything."""
        if self.child is not None:
            os.kill(self.child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    made: list[Holder] = []
    yield made
    for holder in made:
        holder.close()


def is_dead(path: Path) -> bool:
    found = seize(path)
    if found is None:
        return False
    with found:
        return True


def test_a_process_that_was_killed_is_dead_at_once_even_as_a_zombie(
    folder: Path, holders: list[Holder]
) -> None:
    # given a process that holds its lock
    holders.append(Holder(folder))
    assert not is_dead(holders[0].path)
    assert list(dead_in(folder)) == []
    # when it is killed, and nobody has waited for it yet
    holders[0].kill()
    # then it is dead, whoever asks, and it is found without being named
    assert is_dead(holders[0].path)
    (found,) = dead_in(folder)
    with found:
        assert found.path == holders[0].path


def test_a_stopped_process_is_not_dead(folder: Path, holders: list[Holder]) -> None:
    holders.append(Holder(folder))

    os.kill(holders[0].process.pid, signal.SIGSTOP)

    assert not is_dead(holders[0].path)


def test_a_process_lives_while_a_child_of_it_does(folder: Path, holders: list[Holder]) -> None:
    # given a process with a child that it has forked
    holders.append(Holder(folder, "with a child"))
    # when the parent dies
    holders[0].kill()
    # then the child may still run what it was given
    assert not is_dead(holders[0].path)
    # and when it ends too, that is over
    assert holders[0].child is not None
    os.kill(holders[0].child, signal.SIGKILL)
    wait_until(lambda: is_dead(holders[0].path), 10, "the lock of the dead")


def test_a_lock_that_is_being_made_is_taken_for_that_of_the_dead_by_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given others, who look into the folder at each moment
    flock = fcntl.flock
    found: list[process_locks.DeadProcess] = []

    def watched(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        found.extend(dead_in(folder))
        flock(descriptor, operation)

    folder.mkdir(mode=0o700)
    monkeypatch.setattr(process_locks, "_locks", [])
    monkeypatch.setattr(fcntl, "flock", watched)
    # when a process begins
    lock = process_locks._new_lock(folder, process_locks.boot_id())
    # then they have not found it, and it has its lock
    assert found == []
    assert lock.path.exists()
    assert not is_dead(lock.path)
    os.close(lock._descriptor)
    assert is_dead(lock.path)
    assert [path.name for path in folder.iterdir()] == [lock.path.name]


def test_only_one_at_a_time_has_the_lock_of_the_dead_and_removes_its_file(
    folder: Path, holders: list[Holder]
) -> None:
    holders.append(Holder(folder))
    holders[0].kill()
    first = seize(holders[0].path)
    assert first is not None
    with first:
        assert seize(holders[0].path) is None
        first.forget()
    assert not is_dead(holders[0].path)
    assert list(folder.iterdir()) == []


def test_of_what_is_not_found_or_not_named_by_this_boot_nothing_is_known(
    folder: Path, holders: list[Holder]
) -> None:
    holders.append(Holder(folder))
    holders[0].kill()
    boot = process_locks.boot_id()
    other = folder / holders[0].path.name.replace(boot, "another-boot")
    other.write_text("")
    link = folder / f"{boot}.a-link"
    link.symlink_to(holders[0].path)

    assert not is_dead(folder / f"{boot}.1-missing")
    assert not is_dead(other)
    assert not is_dead(link)
    assert not is_dead(Path(holders[0].path.name))
    assert not is_dead(Path(f"/tmp/\0/{boot}.1"))


def test_a_folder_that_is_not_its_owners_alone_is_not_used(
    folder: Path, holders: list[Holder], caplog: pytest.LogCaptureFixture
) -> None:
    # given a folder that others may read, and another one by a link
    holders.append(Holder(folder))
    holders[0].kill()
    link = folder.parent / "link"
    link.symlink_to(folder)
    folder.chmod(0o755)
    # then nobody is dead there, and no lock is taken
    assert not is_dead(holders[0].path)
    assert not is_dead(link / holders[0].path.name)
    assert list(dead_in(folder)) == []
    assert hold(folder) is None
    # and that is told once
    assert hold(folder) is None
    (record,) = caplog.records
    assert "its mode is 755, expected 700" in record.getMessage()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to somebody else")
def test_a_folder_of_somebody_else_is_not_used(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 1234, 1234)
    with (
        pytest.raises(process_locks.UnusableFolder, match="its owner is user 1234"),
        opened(folder),
    ):
        pass


def test_where_no_folder_can_be_made_there_is_no_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert hold(tmp_path / "file" / "locks") is None
    assert "come back after its lease, not at once" in caplog.text


def test_without_a_boot_id_there_is_no_lock_and_nobody_is_dead(
    folder: Path, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    holders.append(Holder(folder))
    holders[0].kill()
    monkeypatch.setattr(process_locks, "boot_id", lambda: "")

    assert hold(folder) is None
    assert not is_dead(holders[0].path)
    assert list(dead_in(folder)) == []


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs"])
def test_on_a_file_system_that_may_lose_locks_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(process_locks, "_kinds", {folder.stat().st_dev: kind})
    with pytest.raises(process_locks.UnusableFolder, match=kind), opened(folder):
        pass


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "a b" / "c").mkdir(parents=True)
    mounts = tmp_path / "mountinfo"
    point = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(
        f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {point} rw shared:1 - tmpfs none rw\n"
        f"3 2 0:3 / {point} rw - nfs4 host:/x rw\n4 1 0:4 / {point}/cc rw - xfs none rw\n"
    )

    assert file_system_of(tmp_path / "a b" / "c", mounts) == "nfs4"
    assert file_system_of(tmp_path, mounts) == "ext4"
    assert file_system_of(tmp_path, tmp_path / "missing") == ""


def test_old_files_are_removed_by_the_next_process(folder: Path, holders: list[Holder]) -> None:
    # given old files of a dead process, a living one, another boot, and one that is no lock
    holders.extend([Holder(folder), Holder(folder)])
    holders[0].kill()
    others = [folder / "another-boot.1-x", folder / "README"]
    for path in others:
        path.write_text("")
    for path in folder.iterdir():
        os.utime(path, (time.time() - 2 * process_locks.KEPT_S,) * 2)
    # when another process begins
    holders.append(Holder(folder))
    # then only what is of use is left
    expected = {holders[1].path, holders[2].path, folder / "README"}
    assert set(folder.iterdir()) == expected


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert process_locks.default_folder() == Path("/run/user/7/cqrs-celery")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert str(os.geteuid()) in process_locks.default_folder().name
