"""The embedded server: it serves, keeps its data, and ends with whoever started it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import redis

from cqrs_celery.backends.redis import embedded, server_folder
from cqrs_celery.backends.redis.embedded import EmbeddedRedis, embedded_redis, redis_or_embedded
from cqrs_celery.backends.redis.server_binary import find_server_binary
from cqrs_celery.errors import ConfigurationError, MissingDependency
from tests.conftest import require_server
from tests.nodes import free_port
from tests.waiting import wait_until

#: Starts a server in the folder argv[1], says its URL and process id, and waits for input.
STARTER = """
import sys
from cqrs_celery.backends.redis.embedded import embedded_redis

server = embedded_redis(sys.argv[1])
print(server.url, server.pid, flush=True)
sys.stdin.read()
"""

#: The same, with a fork that holds everything that its parent had open.
FORKING_STARTER = STARTER.replace(
    "sys.stdin.read()",
    "import os, time\nif os.fork() == 0:\n    server.close()\n    time.sleep(60)\nsys.stdin.read()",
)


@pytest.fixture(autouse=True)
def _with_server() -> None:
    require_server()


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start_elsewhere(directory: Path, source: str = STARTER) -> tuple[subprocess.Popen, str, int]:
    """Start a server in another process; returns that process, the URL, the server's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    url, pid = process.stdout.readline().split()
    return process, url, int(pid)


def end(process: subprocess.Popen) -> None:
    """Kill a starter and its forks, and reap it."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_server_answers_and_is_the_process_it_says(tmp_path: Path) -> None:
    # when a server is started in a folder that is still to be made
    with embedded_redis(tmp_path / "new" / "redis") as server:
        # then it answers, listens on the loopback address alone, and keeps an append-only file
        with client(server.url) as redis_client:
            assert redis_client.ping()
            assert redis_client.info()["process_id"] == server.pid
            assert redis_client.config_get("appendonly") == {"appendonly": "yes"}
            assert redis_client.config_get("appendfsync") == {"appendfsync": "everysec"}
        addresses = {c.laddr.ip for c in psutil.Process(server.pid).net_connections()}
        assert addresses == {"127.0.0.1"}
        # and it says what it runs
        assert Path(server.binary).name in ("redis-server", "valkey-server")
        assert f"127.0.0.1:{server.port}" in repr(server)


def test_leaving_the_block_stops_the_server(tmp_path: Path) -> None:
    # given a server
    with embedded_redis(tmp_path) as server:
        pid = server.pid
        assert is_alive(pid)
    # then nothing is left of it, and closing it again does nothing
    assert not is_alive(pid)
    server.close()


def test_data_survive_a_restart_in_the_same_folder(tmp_path: Path) -> None:
    # given a server that was told something, and stopped at once
    with embedded_redis(tmp_path) as server, client(server.url) as redis_client:
        redis_client.set("name", "Bolt")
    # when another one starts there
    with embedded_redis(tmp_path) as server, client(server.url) as redis_client:
        # then it knows
        assert redis_client.get("name") == "Bolt"


def test_it_listens_where_it_is_told_to(tmp_path: Path) -> None:
    port = free_port()
    with embedded_redis(tmp_path, port=port) as server:
        assert server.port == port
        assert server.url == f"redis://:{server.password}@127.0.0.1:{port}/0"


def test_a_taken_port_is_refused_with_the_servers_own_words(tmp_path: Path) -> None:
    with (
        embedded_redis(tmp_path / "one") as server,
        pytest.raises(ConfigurationError, match=r"(?s)did not start.*in use"),
    ):
        embedded_redis(tmp_path / "two", port=server.port)


def test_a_free_port_that_is_lost_to_another_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded_redis(tmp_path / "one") as one:
        # given that the port that was free a moment ago is taken
        ports = iter([one.port, free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        # then another one is taken
        with embedded_redis(tmp_path / "two") as two:
            assert two.port != one.port


def test_the_server_ends_with_a_starter_that_is_killed_and_keeps_its_data(tmp_path: Path) -> None:
    # given a server that another process has started
    process, url, pid = start_elsewhere(tmp_path)
    with client(url) as redis_client:
        redis_client.set("name", "Bolt")
    # when that process is killed with -9
    process.kill()
    process.communicate()
    # then the server ends too, by itself
    wait_until(lambda: not is_alive(pid), 10, "the server to end")
    # and its data are complete
    with embedded_redis(tmp_path) as server, client(server.url) as redis_client:
        assert redis_client.get("name") == "Bolt"


def test_a_fork_of_the_starter_neither_stops_the_server_nor_keeps_it(tmp_path: Path) -> None:
    # given a starter that has forked; the fork has closed its copy of the server
    process, url, pid = start_elsewhere(tmp_path, FORKING_STARTER)
    try:
        with client(url) as redis_client:
            assert redis_client.ping()
        # when the starter alone is killed
        process.kill()
        # then the server ends, although the fork lives
        wait_until(lambda: not is_alive(pid), 10, "the server to end")
    finally:
        end(process)


def test_a_starter_that_ends_in_good_order_stops_the_server_too(tmp_path: Path) -> None:
    process, _, pid = start_elsewhere(tmp_path)
    process.communicate()
    assert process.returncode == 0
    wait_until(lambda: not is_alive(pid), 10, "the server to end")


def test_ctrl_c_is_for_the_starter_not_for_the_server(tmp_path: Path) -> None:
    process, url, pid = start_elsewhere(tmp_path)
    try:
        assert os.getpgid(pid) != os.getpgid(process.pid)
        with client(url) as redis_client:
            assert redis_client.ping()
    finally:
        end(process)


def test_a_second_server_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOCK_S", 0.2)
    with (
        embedded_redis(tmp_path),
        pytest.raises(ConfigurationError, match="another embedded server runs in"),
    ):
        embedded_redis(tmp_path)


def test_a_start_waits_for_the_folders_last_server_to_end(tmp_path: Path) -> None:
    # given a server that ends a moment after the next start has begun
    first = embedded_redis(tmp_path)
    timer = threading.Timer(0.3, first.close)
    timer.start()
    # then the start succeeds
    with embedded_redis(tmp_path) as second:
        assert second.pid != first.pid
    timer.join()


def test_without_a_server_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given no program on PATH, and no wheel that brings one
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    # then the error says so, and nothing is left behind
    with pytest.raises(MissingDependency, match=r"pip install '\.\[embedded\]', in a checkout"):
        embedded_redis(tmp_path / "redis")
    assert not (tmp_path / "redis").exists()


def test_a_program_on_path_comes_before_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "valkey-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == str(program)


# ------------------------------------------------------------ redis_or_embedded


def test_a_server_that_answers_is_used_as_it_is(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "theirs") as theirs:
        # when a server is there already
        with redis_or_embedded(theirs.url, tmp_path / "ours") as ours:
            # then none is started
            assert ours is None
            assert not (tmp_path / "ours").exists()
        # and it is left alone
        assert is_alive(theirs.pid)


def test_where_none_answers_an_embedded_server_stands_in_at_the_urls_port(tmp_path: Path) -> None:
    url = f"redis://localhost:{free_port()}/3"
    with redis_or_embedded(url, tmp_path) as server:
        assert isinstance(server, EmbeddedRedis)
        with client(url) as redis_client:
            assert redis_client.ping()
        pid = server.pid
    assert not is_alive(pid)


def test_the_transports_own_scheme_is_understood(tmp_path: Path) -> None:
    port = free_port()
    with redis_or_embedded(f"reliable-redis://localhost:{port}/0", tmp_path) as server:
        assert server is not None
        assert server.port == port


def test_of_several_that_come_at_once_one_starts_the_server(tmp_path: Path) -> None:
    # given a URL at which nothing answers
    url = f"redis://127.0.0.1:{free_port()}/0"
    found: list[EmbeddedRedis | None] = []
    barrier = threading.Barrier(4)
    is_done = threading.Event()

    def come() -> None:
        barrier.wait()
        with redis_or_embedded(url, tmp_path) as server:
            found.append(server)
            is_done.wait(30)

    # when four come at once
    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) == 4, 20, "all four to have a server")
    # then one has started it, and the others use it
    with client(url) as redis_client:
        assert redis_client.ping()
    is_done.set()
    for thread in threads:
        thread.join()
    assert sorted(server is None for server in found) == [False, True, True, True]


@pytest.mark.parametrize(
    "url",
    [
        "redis://shop:geheim@localhost:1/0",
        "rediss://localhost:1/0",
        "redis://no-such-host.invalid:6379/0",
        "unix:///no/such/socket",
    ],
)
def test_what_an_embedded_server_cannot_stand_in_for_is_refused_without_secrets(
    tmp_path: Path, url: str
) -> None:
    with (
        pytest.raises(ConfigurationError, match="can only stand in") as refusal,
        redis_or_embedded(url, tmp_path),
    ):
        pass
    assert "geheim" not in str(refusal.value)


def test_a_server_that_asks_for_a_password_is_reachable(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "theirs") as theirs:
        with client(theirs.url) as redis_client:
            redis_client.config_set("requirepass", "geheim")
        with redis_or_embedded(theirs.url, tmp_path / "ours") as ours:
            assert ours is None


# ------------------------------------------------------------ for its user alone


def modes(directory: Path) -> dict[str, str]:
    """Return the mode of a folder and of everything in it."""
    return {
        str(path): oct(path.lstat().st_mode)[-3:] for path in [directory, *directory.rglob("*")]
    }


def test_nobody_else_can_read_its_files(tmp_path: Path) -> None:
    # given a process whose files everybody may read
    before = os.umask(0)
    try:
        # when it starts a server, which writes
        with embedded_redis(tmp_path / "redis") as server, client(server.url) as redis_client:
            redis_client.set("secret", "Bolt")
            found = modes(tmp_path / "redis")
    finally:
        os.umask(before)
    # then its folder and all files in it are its user's alone
    assert {path: mode for path, mode in found.items() if not mode.endswith("00")} == {}
    assert len(found) > 4


def test_what_an_earlier_release_has_left_readable_is_closed(tmp_path: Path) -> None:
    # given a folder whose files everybody may read, and another file in it
    with embedded_redis(tmp_path) as server, client(server.url) as redis_client:
        redis_client.set("name", "Bolt")
    for path in tmp_path.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    other = tmp_path / "other.txt"
    other.touch(mode=0o644)
    # when a server starts there
    with embedded_redis(tmp_path) as server, client(server.url) as redis_client:
        # then its own are closed, a password that others could read is replaced, and what is not
        # the server's is left alone
        assert redis_client.get("name") == "Bolt"
        found = modes(tmp_path)
    del found[str(tmp_path)], found[str(other)]
    assert {path: mode for path, mode in found.items() if not mode.endswith("00")} == {}
    assert other.stat().st_mode & 0o777 == 0o644


def test_nobody_uses_it_without_its_password_which_is_shown_nowhere(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as server:
        # given a server; without its password, with a wrong one, nothing is answered
        for url in (f"redis://127.0.0.1:{server.port}/0", f"redis://:no@127.0.0.1:{server.port}/0"):
            with client(url) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
        # then the password is long, and in no command line, log or representation
        assert len(server.password) >= 40
        assert server.password in server.url
        shown = [repr(server), str(server), (tmp_path / "server.log").read_text()]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                shown += process.cmdline()
        assert not any(server.password in text for text in shown)


def test_a_folder_keeps_its_password_and_another_one_has_another(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "one") as server:
        first = server.password
    with embedded_redis(tmp_path / "one") as again, embedded_redis(tmp_path / "two") as other:
        assert again.password == first
        assert other.password != first


def test_a_password_that_others_could_have_written_is_not_used(tmp_path: Path) -> None:
    # given a folder with a password that others can read, and one that is a link elsewhere
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / server_folder.SECRETS).write_text('requirepass "known"\n')
    (tmp_path / "one" / server_folder.SECRETS).chmod(0o644)
    (tmp_path / "known").write_text('requirepass "known"\n')
    (tmp_path / "known").chmod(0o600)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / server_folder.SECRETS).symlink_to(tmp_path / "known")
    # then a server that starts there has one of its own
    for name in ("one", "two"):
        with embedded_redis(tmp_path / name) as server, client(server.url) as redis_client:
            assert server.password != "known"
            assert redis_client.ping()


def test_a_server_that_stands_in_asks_for_the_urls_own_password(tmp_path: Path) -> None:
    # given a URL with a password at which nothing answers
    port = free_port()
    url = f"redis://:geheim@localhost:{port}/0"
    # when a server stands in
    with redis_or_embedded(url, tmp_path) as server:
        # then whoever has the URL can use it, and nobody else
        assert server is not None
        assert "geheim" not in repr(server)
        with client(url) as redis_client:
            assert redis_client.ping()
        with (
            client(f"redis://localhost:{port}/0") as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    # and the same folder serves another URL, which has none
    with redis_or_embedded(f"redis://localhost:{port}/0", tmp_path) as server:
        assert server is not None
        with client(server.url) as redis_client:
            assert redis_client.ping()


def test_a_password_that_its_configuration_cannot_hold_is_refused_without_it(
    tmp_path: Path,
) -> None:
    url = f"redis://:two%20words@localhost:{free_port()}/0"
    with (
        pytest.raises(ConfigurationError, match="characters that its") as refusal,
        redis_or_embedded(url, tmp_path),
    ):
        pass
    assert "two words" not in str(refusal.value)
