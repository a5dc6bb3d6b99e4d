"""What links hand on: pieces of a message, and how a link says that it cannot."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from nap_stream.errors import ConfigError
from nap_stream.files import read_token
from nap_stream.records import Status
from nap_stream.text import printable

SHOWN = 40
"""Characters of a message that an error shows."""
MAX_ERROR = 300


@dataclass(frozen=True, slots=True)
class Reference:
    """An object in a bucket. ``size_bytes`` is what a notification says of it.

    ``scheme`` is that of its address: of `CLOUDS`.
    """

    bucket: str
    key: str
    version_id: str | None = None
    size_bytes: int | None = None
    scheme: str = "s3"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a message on its way to being an image's bytes.

    ``value`` is bytes, text, a `Reference`, a value of a structure, or, of one of several pieces of
    a message, the `Unreadable` that it is. ``key``, ``has_key``,
    ``event_time_ms`` and ``source_uri`` are those of `SourceImage`.
    """

    value: Any
    key: bytes | None = None
    has_key: bool = False
    event_time_ms: int | None = None
    source_uri: str | None = None

    def with_value(self, value: Any) -> Self:
        """The same piece, read further."""
        return replace(self, value=value)


class Unreadable(Exception):  # noqa: N818  what becomes of an image, not a fault of the program
    """A piece cannot be read, and never will be: it becomes a row with this status."""

    def __init__(
        self, error: str, status: Status = Status.BAD_MESSAGE, source_uri: str | None = None
    ) -> None:
        super().__init__(error, status, source_uri)
        # It may quote what came in the message.
        self.error = printable(error)[:MAX_ERROR]
        self.status, self.source_uri = status, source_uri


class Away(Exception):  # noqa: N818  a state of the world, for whoever decides to wait
    """What a link needs is not there now, and may be later. ``what`` and ``cause`` are for people.

    Whether to wait for it or to give up is decided by the reader of messages.
    """

    def __init__(self, what: str, cause: str, source_uri: str | None = None) -> None:
        super().__init__(what, cause, source_uri)
        self.what, self.cause, self.source_uri = what, cause, source_uri

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}"


def secret_of(path: Path, what: str, read: Callable[[Path, str], str] = read_token) -> str:
    """The secret for ``what`` in a file, as ``read`` reads it.

    Raises:
        Away: It cannot be read, or holds no secret.
    """
    try:
        return read(path, what)
    except ConfigError as error:
        raise Away(what, error.problem) from None


def trusted(ca_file: Path | None, where: str) -> ssl.SSLContext:
    """What certificates are checked by: those of a file, or the system's. It takes a while.

    Raises:
        ConfigError: They cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the certificates cannot be read: {error}", f"{where} {ca_file}"
        ) from error


class Flawed(Exception):  # noqa: N818  likewise
    """An object was answered for, and not whole or in time: it is tried again, not waited for."""


class Link(Protocol):
    """One link of a chain. Called by several threads at once."""

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """Read a piece further: at least one comes of it.

        Raises:
            Unreadable: It cannot be read.
            Away: What is needed for that is away.
        """

    def close(self) -> None:
        """End what is waited for, and release connections, if any. Safe to call twice."""
        return


def as_bytes(value: Any, link: str) -> bytes:
    """Give what a binary link reads."""
    if isinstance(value, bytes):
        return value
    raise Unreadable(f"{link}: got {kind_of(value)}, expected bytes")


def as_text(value: Any, link: str) -> str:
    """Give what a link of text reads: text, or its bytes in UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Unreadable(f"{link}: got bytes that are no text: {shown(value)}") from None
    raise Unreadable(f"{link}: got {kind_of(value)}, expected text")


_KINDS = {
    dict: "an object",
    list: "an array",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    bytes: "bytes",
    Reference: "a reference",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Name a value's kind, for errors."""
    return _KINDS.get(type(value), type(value).__name__)


def shown(value: bytes | str) -> str:
    """Give the beginning of what a message holds, as one printable line."""
    if isinstance(value, bytes):
        return f"it begins with {value[:8].hex(' ')}" if value else "it is empty"
    return repr(value[:SHOWN].encode("ascii", "backslashreplace").decode())
