"""The transport by every way to a server: prefix, socket file, password, TLS, Sentinel, list."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import redis
from celery import Celery
from kombu import Connection

from cqrs_celery.transport import TRANSPORT, Channel
from tests.chaos.lab import Lab
from tests.chaos.outages import wait_caught_up
from tests.conftest import RedisFactory
from tests.nodes import RedisNode, free_port
from tests.proxy import Proxy
from tests.waiting import wait_until


def works(lab: Lab, *, first: int = 0, url: str = "") -> None:
    """Run some tasks, one of them retried, one delayed, and ask the worker whether it is there."""
    numbers = range(first, first + 3)
    lab.send(numbers[0], url=url)
    lab.send(numbers[1], "again", url=url, sequence="s")
    lab.send(numbers[2], url=url, countdown=0.2, priority=6)
    lab.wait_done(*numbers)
    app = lab.app(url)
    with app.connection() as connection:
        assert app.control.ping(connection=connection, timeout=10, limit=1)


def test_a_key_prefix_is_in_front_of_all_keys_and_divides_applications(
    tmp_path: Path, redis_url: str
) -> None:
    (tmp_path / "other").mkdir()
    with (
        Lab(tmp_path, url=redis_url, global_keyprefix="shop.") as lab,
        Lab(tmp_path / "other", url=redis_url, global_keyprefix="office.") as other,
    ):
        # given two applications on one database, each with a prefix of its own
        lab.worker()
        other.worker()
        # when both work
        works(lab)
        works(other, first=100)
        lab.wait_empty()
        other.wait_empty()
        # then neither has run the other's, and all keys begin with a prefix
        assert lab.journal.done() == {0, 1, 2}
        assert other.journal.done() == {100, 101, 102}
        keys = (bytes(key) for key in lab.client.scan_iter())
        strangers = [key for key in keys if not key.startswith((b"shop.", b"office."))]
        assert strangers == []


def test_a_unix_socket(tmp_path: Path, redis_factory: RedisFactory) -> None:
    # given a server with a socket file
    node = redis_factory(options={"unixsocket": str(tmp_path / "redis.sock")})
    url = f"reliable-redis+socket://{tmp_path / 'redis.sock'}?virtual_host=2"
    with Lab(tmp_path, url=url) as lab:
        lab.worker()
        works(lab)
    # then it is our transport that has worked there
    with redis.Redis.from_url(node.url_of(2)) as client:
        assert client.exists("cq:id")


#: What a team's own user needs: its keys, all channels (Kombu subscribes to patterns, which a rule
#: must name letter by letter), and no command that concerns the server.
ACL = "on >geheim ~team.* &* +@all -@admin -@dangerous"


def test_a_user_with_a_password_who_may_touch_only_its_own_keys(
    tmp_path: Path, redis_factory: RedisFactory
) -> None:
    # given such a user, and nobody else
    node = redis_factory()
    with node.client() as client:
        client.execute_command("ACL", "SETUSER", "team", *ACL.split())
        url = f"redis://team:geheim@127.0.0.1:{node.port}/0"
        with Lab(tmp_path, url=url, global_keyprefix="team.") as lab:
            lab.worker()
            works(lab)
        # then nothing was refused, but on a server that knows no sub-commands, and can't be asked
        # what its user may do: the driver's name, and what tells its maxmemory-policy
        refused = {entry[b"object"] for entry in client.execute_command("ACL", "LOG")}
        is_old = client.info("server")["redis_version"].startswith("6.")
        assert refused <= ({b"client", b"info", b"config"} if is_old else {b"client"})
    with pytest.raises(Exception, match=r"(?i)invalid username-password|WRONGPASS"):
        Connection(url.replace("geheim", "falsch"), transport=TRANSPORT).connect()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1; the file holds its key too."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("TLS NOT TESTED: no openssl program to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(path)]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())
    return path


@pytest.mark.parametrize("scheme", ["rediss", "reliable-rediss"])
def test_tls_is_spoken_and_the_certificate_is_looked_at(
    tmp_path: Path, redis_node: RedisNode, redis_url: str, certificate: Path, scheme: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Proxy(redis_node.port, tls=context) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}/0"
        # given the certificate's authority, it works
        with Lab(tmp_path, url=f"{url}?ssl_ca_certs={certificate}.crt") as lab:
            lab.worker()
            lab.send(0)
            lab.wait_done(0)
        # without, nobody talks to a server that is not proven
        if scheme == "rediss":
            connection = Connection(url, transport=TRANSPORT, ssl={"ssl_cert_reqs": "required"})
        else:
            connection = Connection(url)
        with pytest.raises(Exception, match=r"(?i)certificate verify failed"):
            connection.connect()


class SentinelNode(RedisNode):
    """A Sentinel that watches one master, and decides alone."""

    def __init__(self, directory: Path, master: int) -> None:
        super().__init__(directory, name="sentinel")
        self._conf = directory / "sentinel.conf"
        self._conf.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"dir {directory}\n"
            f"sentinel monitor shop 127.0.0.1 {master} 1\n"
            "sentinel down-after-milliseconds shop 500\n"
            "sentinel failover-timeout shop 3000\n"
        )

    def command(self) -> list[str]:
        assert self._binary
        return [self._binary, str(self._conf), "--sentinel"]


def is_master(client: redis.Redis) -> bool:
    try:
        return bool(client.info("replication")["role"] == "master")
    except redis.ConnectionError:
        # Sentinel makes the one that it promotes close all connections.
        return False


@pytest.mark.parametrize("scheme", ["sentinel", "reliable-sentinel"])
def test_a_worker_follows_sentinel_to_the_new_master(tmp_path: Path, scheme: str) -> None:
    at_once = {"options": {"repl-diskless-sync-delay": "0"}}
    with Lab(tmp_path, lease_s=1, server=at_once, master_name="shop") as lab:
        # given a master with a replica, and a Sentinel that knows both
        assert lab.node is not None
        replica = lab.server(name="replica", **at_once)
        with replica.client() as client:
            client.replicaof("127.0.0.1", lab.node.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 20)
            (tmp_path / "sentinel").mkdir()
            sentinel = SentinelNode(tmp_path / "sentinel", lab.node.port)
            lab.nodes.append(sentinel)
            sentinel.start()
            with sentinel.client() as watcher:
                wait_until(lambda: watcher.sentinel_slaves("shop"), 20, "the replica to be known")
            # and a worker in a task with others behind it
            lab.url = f"{scheme}://127.0.0.1:{sentinel.port}/0"
            worker = lab.worker(pool="prefork")
            for n in range(4):
                lab.send(n, kwargs={"gate": "gate"})
            lab.wait_started(0)
            with lab.node.client() as master:
                wait_caught_up(client, master)
            # when the master dies
            lab.node.kill()
            wait_until(lambda: is_master(client), 30, "the promotion")
            lab.open("gate")
            # then the worker goes on at the new one, with what it had, and with new tasks
            lab.wait_done(*range(4), deadline_s=40)
            lab.send(4)
            lab.wait_done(4)
            wait_until(lambda: client.hlen("cq:msg") == 0, 20, "all to be settled")
        assert worker.status == "running"
        assert lab.journal.starts() == dict.fromkeys(range(5), 1)


def test_a_channel_is_the_first_thing_that_a_failover_list_is_asked_for(
    redis_node: RedisNode, redis_url: str
) -> None:
    # given a list whose first server is not there, and that has not connected yet
    scheme = "reliable-redis"
    url = f"{scheme}://127.0.0.1:{free_port()}/0;{scheme}://127.0.0.1:{redis_node.port}/0"
    with Connection(url) as connection:
        # when a channel is asked for
        with connection.channel() as channel:
            channel.queue_declare("first")
            assert isinstance(channel, Channel)
        # then it was one to the server that is there
        assert connection.port == redis_node.port


@pytest.mark.parametrize("scheme", ["redis", "reliable-redis"])
def test_a_failover_list_stays_on_our_transport(
    tmp_path: Path, redis_node: RedisNode, redis_url: str, scheme: str
) -> None:
    # given a list whose first server is not there
    dead, alive = free_port(), redis_node.port
    url = f"{scheme}://127.0.0.1:{dead}/0;{scheme}://127.0.0.1:{alive}/0"
    with Lab(tmp_path, url=url) as lab:
        # when something is published
        app: Celery = lab.app()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0.1)
            assert isinstance(connection.default_channel, Channel)
        lab.send(0, sequence="s")
        with redis_node.client() as client:
            assert client.hlen("cq:msg") == 1
        # then a worker with the same list runs it
        lab.worker()
        lab.wait_done(0)
