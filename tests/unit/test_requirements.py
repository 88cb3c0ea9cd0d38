"""The locks: every version has its hashes, they agree, and they hold what builds the package."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conformance.suites import without_hashes
from tests.nodes import REPOSITORY

LOCKS = ("requirements.lock", "requirements-image.lock")


@dataclass(frozen=True)
class Pin:
    version: str
    hashes: tuple[str, ...]


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def pins_of(name: str) -> dict[str, Pin]:
    pins: dict[str, Pin] = {}
    for entry in text_of(name).replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.lstrip().startswith("#"):
            wanted, *hashes = entry.split(" --hash=")
            requirement = Requirement(wanted.strip())
            (only,) = requirement.specifier
            assert only.operator == "==", entry
            pins[canonicalize_name(requirement.name)] = Pin(
                only.version, tuple(h.strip() for h in hashes)
            )
    return pins


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads(text_of("pyproject.toml"))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_the_hashes_of_its_files(lock: str) -> None:
    pins = pins_of(lock)
    assert len(pins) > 30
    for name, pin in pins.items():
        assert pin.hashes, name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in pin.hashes), name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_place_of_a_machine(lock: str) -> None:
    text = text_of(lock)
    assert "://" not in text
    assert not re.search(r"^--(?!hash)", text, re.MULTILINE)
    # Each mention of a file in an annotation is one of the repository.
    assert set(re.findall(r"-c (\S+)", text)) <= {"requirements.lock"}


def test_the_image_has_versions_that_ci_tests() -> None:
    tested = pins_of("requirements.lock")
    image = pins_of("requirements-image.lock")
    assert {name: pin.version for name, pin in image.items()}.items() <= {
        name: pin.version for name, pin in tested.items()
    }.items()


def test_the_locks_hold_what_their_extras_ask_for(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    everything = names([*project["dependencies"], *pyproject["dependency-groups"]["build"]])
    assert everything | names([*extras["embedded"], *extras["sample"], *extras["test"]]) <= set(
        pins_of("requirements.lock")
    )
    assert everything | names([*extras["sample"], *extras["postgresql"]]) <= set(
        pins_of("requirements-image.lock")
    )


def test_every_pin_is_within_the_range_that_users_get(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pins = pins_of("requirements.lock")
    for line in [*project["dependencies"], *extras, *pyproject["dependency-groups"]["build"]]:
        requirement = Requirement(line)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is None or requirement.specifier.contains(pin.version), line


def test_the_backend_that_builds_is_the_one_in_the_lock(pyproject: dict[str, Any]) -> None:
    # given a build without isolation, which installs nothing of its own
    makefile = text_of("Makefile")
    assert "--require-hashes -r requirements.lock" in makefile
    assert "--no-deps --no-build-isolation -e ." in makefile
    # then what pyproject.toml asks for a build is in the group that the locks are made with
    group = pyproject["dependency-groups"]["build"]
    assert set(pyproject["build-system"]["requires"]) <= set(group)


def test_pinswithout_hashes_are_the_same_pins() -> None:
    # The conformance suites need packages of their own beside the locked ones.
    stripped = without_hashes("# made\na==1 ; x < '3' \\\n    --hash=sha256:0\n    # via b\nb==2\n")
    assert stripped == "a==1 ; x < '3'\nb==2\n"
