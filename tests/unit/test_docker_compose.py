"""docker-compose.yml: what a user starts with Docker is what the sample is made for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sample_app.read_model import VARIABLE
from tests.nodes import REPOSITORY


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["services"])


def test_there_are_a_redis_a_worker_and_flower(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "worker", "flower"}


def test_redis_keeps_an_append_only_file_in_a_volume(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert services["redis"]["volumes"] == ["redis:/data"]


@pytest.mark.parametrize("name", ["worker", "flower"])
def test_worker_and_flower_run_the_sample_on_that_redis(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert service["command"][:4] == ["celery", "-A", "sample_app.app", name]
    assert service["environment"]["REDIS_URL"] == "redis://redis:6379/0"
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_the_variables_are_those_that_the_sample_reads(services: dict[str, Any]) -> None:
    config = (REPOSITORY / "celeryconfig.py").read_text(encoding="utf-8")
    assert set(services["worker"]["environment"]) == {"REDIS_URL", VARIABLE}
    assert '"REDIS_URL"' in config


def test_the_read_model_is_in_a_volume(services: dict[str, Any]) -> None:
    assert services["worker"]["environment"][VARIABLE] == "/data/stock.sqlite3"
    assert services["worker"]["volumes"] == ["read-model:/data"]


def test_flower_is_published_to_this_machine_alone(services: dict[str, Any]) -> None:
    assert services["flower"]["ports"] == ["127.0.0.1:5555:5555"]
    assert "ports" not in services["redis"]


def test_every_volume_is_declared(services: dict[str, Any]) -> None:
    document = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    used = {v.partition(":")[0] for s in services.values() for v in s.get("volumes", ())}
    assert used == set(document["volumes"])


def test_the_image_has_what_the_sample_needs() -> None:
    # given an image that copies what .dockerignore lets through
    kept = {
        line.removeprefix("!")
        for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    assert {"celeryconfig.py", "cqrs_celery", "sample_app", "pyproject.toml"} <= kept
    # then it installs the sample's extra, and does not run as root
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert '".[sample]"' in dockerfile
    assert "\nUSER shop\n" in dockerfile
