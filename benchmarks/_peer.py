"""Find `eventsourcing`, the rival, in an interpreter of its own; it is no requirement of ours."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks._report import Report

PEER = "eventsourcing"

#: What is installed for it.
INSTALLED = "eventsourcing>=9.5,<9.6", "psycopg[binary,pool]"

_ASKED = """
import eventsourcing.postgres
from importlib import metadata
print(metadata.version("eventsourcing"))
"""


def version_of(python: str) -> str | None:
    """Return the version of an interpreter's `eventsourcing`; None if it or its driver lacks."""
    done = subprocess.run([python, "-c", _ASKED], capture_output=True, check=False, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


@contextlib.contextmanager
def peer_python(given: str | None, report: Report | None = None) -> Iterator[str | None]:
    """Provide an interpreter that has it.

    Args:
        given: a Python that is said to have it. Without one, an environment is made, and thrown
            away with the block.
        report: where its version is noted, or that it was not measured.

    Yields:
        The interpreter; None if there is none.
    """
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        python = given or _make(Path(folder))
        version = version_of(python)
        if report is not None and version is None:
            why = (
                "the given Python lacks it"
                if given
                else f"{' and '.join(INSTALLED)} could not be installed"
            )
            report.leave_out(PEER, why)
        elif report is not None and version is not None:
            report.versions[PEER] = version
        yield python if version is not None else None


def _make(folder: Path) -> str:
    print(f"making an environment with {' and '.join(INSTALLED)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *INSTALLED]
    subprocess.run(pip, check=False)
    return python
