"""The folder of an embedded server: its data and its password, which only its user can read."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

from ...errors import ConfigurationError

#: The file in a server's folder that holds its password, as a line of its configuration.
SECRETS: Final = "password.conf"

#: The beginning of that line.
_REQUIRED: Final = "requirepass "

#: The files that an earlier release has made readable for other users.
_FILES: Final = ("appendonlydir", "appendonlydir/*", "server.log", "server.lock", "*.rdb", "*.aof")


def own_folder(directory: Path) -> Path:
    """Return the resolved folder, created if missing; make a server's files in it private.

    An existing folder keeps its mode, since it may hold more than a server's data.
    """
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    directory = directory.resolve(strict=True)
    for path in (path for pattern in _FILES for path in directory.glob(pattern)):
        status = path.lstat()
        is_ours = status.st_uid == os.geteuid() and not path.is_symlink()
        if is_ours and status.st_mode & 0o077:
            path.chmod(status.st_mode & 0o700)
    return directory


def password_of(directory: Path, wanted: str | None) -> str:
    """Return the password of a folder's server; it is kept in a file that only its user can read.

    Args:
        directory: the folder.
        wanted: the wanted password; "" for none, None for the folder's, which is generated if it is
            missing.

    Raises:
        ConfigurationError: the password can't be written into a server's configuration.
    """
    if wanted == "":
        return ""
    path = directory / SECRETS
    found = _read_password(path)
    if found and wanted in (None, found):
        return found
    password = wanted or secrets.token_urlsafe(32)
    if not (password.isprintable() and password.isascii()) or set(password) & set('"\\ '):
        raise ConfigurationError(
            f"the password for the embedded server in {directory} has characters that its"
            " configuration can't hold: choose ASCII letters, digits and signs, without spaces,"
            " quotes and backslashes"
        )
    draft = directory / f".{SECRETS}.{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f'{_REQUIRED}"{password}"\n')
    if wanted is None and not found:
        # If several processes come at once, all use the first one's password.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        if found := _read_password(path):
            draft.unlink()
            return found
    draft.replace(path)
    return password


def _read_password(path: Path) -> str:
    """Return a file's password; empty if there is none, or other users can read or own the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    with os.fdopen(descriptor) as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return ""
        line = file.readline().rstrip("\n")
    return line.removeprefix(_REQUIRED).strip('"') if line.startswith(_REQUIRED) else ""
