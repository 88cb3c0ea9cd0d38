"""docker-compose.yml: what a user starts with Docker is what the sample is made for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from sample_app.read_model import VARIABLE
from tests.nodes import REPOSITORY


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["services"])


#: Services that start only with the profile of their name.
DATABASES = ("postgresql", "sqlserver")

#: An image's name, its tag, and the digest of what is pulled.
PINNED = re.compile(r"[a-z0-9./-]+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}")


def test_there_are_a_redis_a_worker_and_flower_without_a_profile(
    services: dict[str, Any],
) -> None:
    assert {name for name, s in services.items() if "profiles" not in s} == {
        "redis", "worker", "flower",
    }  # fmt: skip


def test_each_database_has_a_profile_of_its_name(services: dict[str, Any]) -> None:
    with_profile = {name: s["profiles"] for name, s in services.items() if "profiles" in s}
    assert with_profile == {name: [name] for name in DATABASES}


def test_every_service_comes_back(services: dict[str, Any]) -> None:
    assert {s["restart"] for s in services.values()} == {"unless-stopped"}


def test_an_image_that_is_not_built_here_is_pinned_by_its_digest(
    services: dict[str, Any],
) -> None:
    images = {name: s["image"] for name, s in services.items() if "build" not in s}
    assert set(images) == {"redis", *DATABASES}
    for image in images.values():
        assert PINNED.fullmatch(image), image


def test_servers_tell_whether_they_can_be_used(services: dict[str, Any]) -> None:
    for name in ("redis", *DATABASES):
        check = services[name]["healthcheck"]
        assert check["test"][0] in {"CMD", "CMD-SHELL"}
        assert {"interval", "timeout", "retries"} <= set(check)


def test_no_password_stands_in_the_file(services: dict[str, Any]) -> None:
    # given what a database asks for
    secret = {
        key: value
        for name in DATABASES
        for key, value in services[name]["environment"].items()
        if "PASSWORD" in key or key == "ACCEPT_EULA"
    }
    # then it comes from the environment, and may be missing where the profile is not chosen
    assert secret == {
        "POSTGRES_PASSWORD": "${POSTGRES_PASSWORD:-}",
        "ACCEPT_EULA": "${ACCEPT_EULA:-}",
        "MSSQL_SA_PASSWORD": "${MSSQL_SA_PASSWORD:-}",
    }
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    assert ":?" not in "".join(
        line for line in text.splitlines() if not line.lstrip().startswith("#")
    )


def test_a_database_keeps_its_data_in_a_volume(services: dict[str, Any]) -> None:
    assert services["postgresql"]["volumes"] == ["postgresql:/var/lib/postgresql"]
    assert services["sqlserver"]["volumes"] == ["sqlserver:/var/opt/mssql"]


def test_redis_keeps_an_append_only_file_in_a_volume(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
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
    assert set(services["worker"]["environment"]) == {"REDIS_URL", "CQRS_EVENT_STORE", VARIABLE}
    assert '"REDIS_URL"' in config
    assert '"CQRS_EVENT_STORE"' in config


def test_the_read_model_is_in_a_volume(services: dict[str, Any]) -> None:
    assert services["worker"]["environment"][VARIABLE] == "/data/stock.sqlite3"
    assert services["worker"]["volumes"] == ["read-model:/data"]


def test_ports_are_published_to_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {
        "flower": ["127.0.0.1:5555:5555"],
        "postgresql": ["127.0.0.1:5432:5432"],
        "sqlserver": ["127.0.0.1:1433:1433"],
    }


def test_every_volume_is_declared(services: dict[str, Any]) -> None:
    document = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    used = {v.partition(":")[0] for s in services.values() for v in s.get("volumes", ())}
    assert used == set(document["volumes"])


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, each on one line."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (n.partition(" ") for n in lines)]


def test_the_dockerfile_has_only_instructions_that_there_are(
    instructions: list[tuple[str, str]],
) -> None:
    assert instructions[0][0] == "FROM"
    assert {word for word, _ in instructions} <= {
        "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "VOLUME", "WORKDIR",
    }  # fmt: skip


def test_the_image_begins_with_a_python_that_is_pinned_by_its_digest(
    instructions: list[tuple[str, str]],
) -> None:
    first, *others = [rest for word, rest in instructions if word == "FROM"]
    image, name = first.split(" AS ")
    assert PINNED.fullmatch(image)
    assert image.startswith("python:3.")
    assert all(other.split(" AS ")[0] == name for other in others)


def test_the_image_installs_what_is_in_the_lock(instructions: list[tuple[str, str]]) -> None:
    commands = " && ".join(rest for word, rest in instructions if word == "RUN").split(" && ")
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 2
    assert "--require-hashes --only-binary :all: -r requirements-image.lock" in installs[0]
    # The package itself brings nothing with it, and is built by what the lock has.
    assert installs[1].endswith("--no-deps --no-build-isolation .")


def test_the_image_runs_as_a_user_of_its_own(instructions: list[tuple[str, str]]) -> None:
    last_stage = instructions[
        max(i for i, (word, _) in enumerate(instructions) if word == "FROM") :
    ]
    assert [rest for word, rest in last_stage if word == "USER"] == ["shop"]
    assert not any("pip" in rest for word, rest in last_stage if word == "RUN")


def test_the_image_may_copy_what_it_copies(instructions: list[tuple[str, str]]) -> None:
    # given what .dockerignore lets through
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    # then it is what the Dockerfile copies from here, and it is there
    copied = {
        source
        for word, rest in instructions
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == kept
    assert all((REPOSITORY / source).exists() for source in copied)
