"""Results written so that a half-written one never stands under its name, and secrets read."""

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nap_stream.errors import ConfigError

MAX_SECRET_BYTES = 64 * 2**10
"""Of a file that holds a secret."""
_TOKEN = re.compile("[!-~]+")


def read_secret(path: Path, where: str) -> str:
    """The secret in a file, without white space at its ends. Mounted secrets are renewed: ask anew.

    ``where`` names the setting in errors.

    Raises:
        ConfigError: It cannot be read, holds none, or more than one. What it holds is not shown.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        secret = content.strip().decode()
    except OSError as error:
        raise ConfigError(
            f"the secret cannot be read ({error.strerror})", where, "Check the file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("the secret is no UTF-8", where, "Check the file") from None
    if len(content) > MAX_SECRET_BYTES or not secret.isprintable() or not secret:
        raise ConfigError(
            "the file of a secret holds none, or more than one", where, "Put it there alone"
        )
    return secret


def read_token(path: Path, where: str) -> str:
    """The token in a file, for a header of HTTP; see `read_secret`.

    Raises:
        ConfigError: As `read_secret`; or it cannot stand in a header.
    """
    token = read_secret(path, where)
    if not _TOKEN.fullmatch(token):
        raise ConfigError("this is no token", where, "Put the token alone in the file, on one line")
    return token


def publish(path: Path, content: bytes) -> None:
    """Write a file durably, in place of one that is there.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        with replacing(path) as temporary:
            write_durably(temporary, content)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"the file cannot be written ({error.strerror})",
            str(path),
            "Choose a folder that can be written",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a hidden sibling of ``path`` to write; it takes that name where the block succeeds.

    Raises:
        ConfigError: There is a device or a pipe of that name, in whose place no file belongs.
        OSError: It cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError("it is a device or a pipe, not a file", str(path), "Name a file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(folder: Path) -> str:
    """Say that a folder's disk is full, as Ray counts it: less than a twentieth of it is free.

    Empty where it is not, or cannot be looked at.
    """
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return ""
    if disk.free * 20 >= disk.total:
        return ""
    free, total = (size / 2**30 for size in (disk.free, disk.total))
    where = f"{folder} on {platform.node()}"
    return f"The disk of {where} is full, {free:.1f} of {total:.1f} GiB are free: make room"
