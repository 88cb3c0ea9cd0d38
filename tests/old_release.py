"""The release before, from the repository's own history: its code, and its queue in this process.

A checkout without that commit can't test against it: then its tests are skipped, with a warning
that ends up in the summary.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import REPOSITORY

#: The last commit of the release that writes format 1.
COMMIT = "0c214dc779350970a66a9a4e87554e7a801848e9"

PACKAGE = "cqrs_celery"


def extract(folder: Path) -> Path:
    """Write the package of that release into a folder; returns the folder to put on the path."""
    git = subprocess.run(
        ["git", "archive", "--format=tar", COMMIT, PACKAGE],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if git.returncode:
        reason = (
            f"commit {COMMIT[:7]} is not in this checkout, so nothing is tested beside the release"
            f" before: fetch the whole history ({git.stderr.decode().strip()})"
        )
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with tarfile.open(fileobj=BytesIO(git.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def environment(old: Path, *before: Path) -> dict[str, str]:
    """Return what makes a process import that release: it comes before an installed one."""
    return {"PYTHONPATH": os.pathsep.join(map(str, (*before, old)))}


@contextmanager
def _imported_from(folder: Path) -> Iterator[None]:
    def ours() -> dict[str, Any]:
        return {n: m for n, m in sys.modules.items() if n.split(".")[0] == PACKAGE}

    present = ours()
    for name in present:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in ours():
            del sys.modules[name]
        sys.modules.update(present)
        importlib.invalidate_caches()


def import_queue(old: Path) -> Any:
    """Return the class `ReliableQueue` of that release, beside that of this one."""
    with _imported_from(old):
        module = importlib.import_module(f"{PACKAGE}.queue.reliable_queue")
        assert Path(str(module.__file__)).is_relative_to(old)
        return module.ReliableQueue
