"""The transport on a server that is demoted, cut off from its master, or full: workers stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.chaos.lab import Lab
from tests.chaos.outages import AT_ONCE, replicate, wait_caught_up
from tests.waiting import wait_until


def test_a_worker_stays_while_its_server_is_demoted_and_promoted_back(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1, server=AT_ONCE) as lab:
        # given a server with a replica, and busy workers of two pools
        assert lab.node is not None
        other = lab.server(name="other", **AT_ONCE)
        with other.client() as second:
            first = lab.client
            replicate(second, lab.node)
            workers = [
                lab.new_worker("solo", queues=["a"]),
                lab.new_worker("prefork", pool="prefork", queues=["b"]),
            ]
            lab.workers(*workers)
            for n in range(6):
                lab.send(n, queue="ab"[n % 2], kwargs={"gate": "gate"})
            lab.wait_started(0, 1)
            wait_caught_up(second, first)
            # when it is demoted, with all that blocked connections are told then
            replicate(second, None)
            replicate(first, other)
            for client in first.client_list():
                first.client_unblock(int(client["id"]), error=True)
            with pytest.raises(redis.exceptions.ReadOnlyError):
                first.set("x", 1)
            lab.waits(lab.lease_s)
            lab.open("gate")
            # and the tasks end while it is a replica
            lab.wait_done(0, 1)
            wait_until(
                lambda: all("ServerUnable" in worker.logs() for worker in workers),
                20,
                "both workers to notice",
            )
            # and it is promoted back
            replicate(first, None)
            replicate(second, lab.node)
        # then both workers go on, and each message has run once
        lab.wait_empty(deadline_s=40)
        assert [worker.status for worker in workers] == ["running", "running"]
        assert lab.journal.starts() == dict.fromkeys(range(6), 1)


def test_a_worker_stays_while_its_server_has_lost_its_master(tmp_path: Path) -> None:
    server = {"options": {"replica-serve-stale-data": "no"}}
    with Lab(tmp_path, lease_s=1, server=server) as lab:
        # given a busy worker
        worker = lab.worker()
        for n in range(3):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        # when its server becomes a replica of one that does not answer
        lab.client.replicaof("127.0.0.1", 1)
        lab.open("gate")
        wait_until(
            lambda: "MasterDownError" in worker.logs() or "ServerUnable" in worker.logs(),
            20,
            "the worker to notice",
        )
        lab.client.replicaof("NO", "ONE")
        # then it goes on once that is over
        lab.wait_empty(deadline_s=40)
        assert worker.status == "running"
        assert lab.journal.starts() == {0: 1, 1: 1, 2: 1}


def test_nothing_is_lost_when_maxmemory_is_reached(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given a busy worker with two messages waiting
        workers = [
            lab.new_worker("solo", queues=["a"]),
            lab.new_worker("prefork", pool="prefork", queues=["b"]),
        ]
        lab.workers(*workers)
        for n in range(6):
            lab.send(n, queue="ab"[n % 2], kwargs={"gate": "gate"})
        lab.wait_started(0, 1)
        # when the server has more than it may have
        lab.client.config_set("maxmemory", lab.client.info("memory")["used_memory"] // 2)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            lab.client.set("x", 1)
        # then a publisher is told
        with pytest.raises(Exception, match="used memory > 'maxmemory'"):
            lab.send(100, queue="a", retry=False)
        # and the worker finishes what it has and goes on with what is there
        lab.open("gate")
        lab.wait_done(*range(6), deadline_s=40)
        lab.waits(lab.lease_s * 2)
        # and with room again there is nothing to repair
        lab.client.config_set("maxmemory", 0)
        lab.send(6, queue="a")
        lab.send(7, queue="b")
        lab.wait_empty()
        assert [worker.status for worker in workers] == ["running", "running"]
        assert lab.journal.starts() == dict.fromkeys(range(8), 1)
