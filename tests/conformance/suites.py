"""Get the two suites and an environment to run them in, into a folder that git ignores."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.nodes import REPOSITORY

CACHE = REPOSITORY / ".conformance"
_HERE = Path(__file__).resolve().parent

#: What the suites import beside the locked versions.
_EXTRAS = (
    "cryptography",
    "django",
    "pydantic",
    "python-dateutil",
    "sqlalchemy",
)

#: Celery's files about other services than Redis: nothing to compare.
_OTHER_MATTERS = {"test_backend.py", "test_cache_backend.py", "test_database_backend.py"}


@dataclass(frozen=True)
class Suite:
    """Be the files of one project's suite, ready to run from `folder`."""

    project: str
    version: str
    folder: Path
    files: tuple[str, ...]


def environment() -> Path:
    """Return the Python of an environment with the locked versions, this package, and extras."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    home = CACHE / "venv"
    python = home / "bin" / "python"
    lock = REPOSITORY / "requirements.lock"
    stamp = home / ".installed"
    wanted = lock.read_text() + " ".join(_EXTRAS) + str(REPOSITORY)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home)])
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*pip, "--require-hashes", "-r", str(lock)])
    # Hashes of some packages would ask for those of all, and not every extra is in the lock.
    pins = CACHE / "pins.txt"
    pins.write_text(without_hashes(lock.read_text()))
    _run([*pip, "-c", str(pins), *_EXTRAS])
    _run([*pip, "--no-deps", "--no-build-isolation", "-e", str(REPOSITORY)])
    stamp.write_text(wanted)
    return python


def kombu_suite() -> Suite:
    """Return Kombu's Redis tests, with the abstract classes that they leave out."""
    folder = _unpacked("kombu")
    tests = folder / "t" / "integration"
    shutil.copy(_HERE / "redis_more.py", tests / "test_redis_more.py")
    names = ["test_redis.py", "test_redis_brpop_qos.py", "test_redis_more.py"]
    files = tuple(f"t/integration/{name}" for name in names if (tests / name).exists())
    return Suite("kombu", version("kombu"), folder, files)


def celery_suite() -> Suite:
    """Return Celery's integration tests, without those for other stores than Redis."""
    folder = _unpacked("celery")
    shutil.copy(_HERE / "half_open.py", folder / "t" / "integration" / "test_half_open.py")
    tests = sorted((folder / "t" / "integration").glob("test_*.py"))
    files = tuple(f"t/integration/{f.name}" for f in tests if f.name not in _OTHER_MATTERS)
    return Suite("celery", version("celery"), folder, files)


def _unpacked(project: str) -> Path:
    """Return a folder with the tests, and nothing else, of the sdist of the installed version."""
    release = f"{project}-{version(project)}"
    folder = CACHE / release
    if not (folder / "t").exists():
        archive = _downloaded(project)
        with tarfile.open(archive) as tar:
            parts = [m for m in tar if m.name.startswith(f"{release}/t/")]
            tar.extractall(CACHE, members=parts, filter="data")
    # The installed package is tested, not the one in the sdist; both suites name classes test_*.
    settings = "[pytest]\npython_classes = test_*\nmarkers =\n"
    # `flaky` asks for five reruns where its plugin is installed: here a test counts as it falls.
    markers = ("sleepdeprived_patched_module", "masked_modules", "patched_environ", "amqp", "flaky")
    settings += "".join(f"    {name}\n" for name in markers)
    (folder / "pytest.ini").write_text(settings)
    return folder


def _downloaded(project: str) -> Path:
    name = f"{project}-{version(project)}.tar.gz"
    if not (CACHE / name).exists():
        _run([
            sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check",
            "--no-deps", "--no-binary", ":all:", "--dest", str(CACHE),
            f"{project}=={version(project)}",
        ])  # fmt: skip
    return CACHE / name


def without_hashes(lock: str) -> str:
    """Return the lines of a lock that name versions, without their hashes."""
    lines = (line for line in lock.splitlines() if not line.lstrip().startswith(("--hash=", "#")))
    return "".join(line.removesuffix("\\").rstrip() + "\n" for line in lines)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
