"""The kinds of values that settings hold, and what all their sections have in common."""

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
)

from nap_stream.clouds import CLOUDS, forms, parsed
from nap_stream.fetched import is_address, is_valid, shown
from nap_stream.text import without_secrets

USER_INFO = re.compile(r"://[^/?#\s]*@")
"""In an address: of whom it is, and perhaps with which password."""
_LAST_PORT = 65_535
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
_LIKE_A_STORE = re.compile(
    f"(?:{'|'.join(CLOUDS)}|s3[an]|gcs|abfss?|wasbs?|https?|file):", re.IGNORECASE
)
"""How addresses begin, as in S3:/bucket or s3a:bucket. Any other colon may be a folder's."""
MASKED = "**********"
"""What pydantic shows of a secret."""


def _from_folder(value: Path, info: ValidationInfo) -> Path:
    """A relative path, taken from the folder of the file that it was read from."""
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / value


def _existing(value: Path, info: ValidationInfo) -> Path:
    # Path.exists would raise where a name is too long, as a secret in place of a path may be.
    if info.context and not os.access(value, os.F_OK):
        raise ValueError(f"no such file or folder: {without_secrets(str(value))}")
    return value


def _in_folder_or_store(value: Path, info: ValidationInfo) -> Path:
    """An address as it stands; a relative path from the folder of the file, which may be one."""
    path = value if is_address(value) else _from_folder(value, info)
    is_there = not is_address(path) and os.access(path, os.F_OK)
    if not is_there and not (is_valid(value) and is_valid(path)):
        raise _no_address("key")
    return path


def _existing_or_in_store(value: Path, info: ValidationInfo) -> Path:
    return value if is_address(value) else _existing(value, info)


def _existing_secret(value: Path, info: ValidationInfo) -> Path:
    """Like `_existing`, without showing what may be the secret itself."""
    if info.context and not os.access(value, os.F_OK):
        raise ValueError("no such file; expected its path, not what it holds")
    return value


def _log_root(value: Path | str, info: ValidationInfo) -> Path | str:
    """An address in an object store as it stands; anything else is a path."""
    if "://" not in str(value):
        path = _from_folder(Path(value), info)
        if is_address(path):
            return shown(path)
        # It would be a folder here, and gone with this machine.
        if _LIKE_A_STORE.match(str(value)):
            raise _no_address("prefix")
        return path
    if parsed(str(value)) is None:
        raise _no_address("prefix")
    return str(value)


def _no_address(last: str) -> ValueError:
    return ValueError(
        f"expected a path or {forms(last)}, the {last} of letters, digits and . _ = - /"
    )


def _without_user(value: str) -> str:
    """Refuse an address that holds a user or a password: it is shown, and sent with alerts."""
    if USER_INFO.search(value):
        raise ValueError("expected an address without user and password")
    return value


def _with_host(value: str) -> str:
    """Refuse an address at which nobody can be, who else would be asked again and again."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        host.rstrip(".").encode("idna")
    except ValueError:
        host, port = "", None
    if host.strip(".") == "" or port == 0:
        raise ValueError("not an address")
    return value


def _more_than_dots(name: str) -> str:
    if name in {".", ".."}:
        raise ValueError(f"Kafka has no topic {name}")
    return name


AnyPath = Annotated[Path, AfterValidator(_from_folder)]
ExistingPath = Annotated[Path, AfterValidator(_from_folder), AfterValidator(_existing)]
AnyObject = Annotated[
    Path, AfterValidator(_in_folder_or_store), PlainSerializer(shown, when_used="json")
]
"""A path, or an address in an object store (`nap_stream.fetched`)."""
ExistingObject = Annotated[AnyObject, AfterValidator(_existing_or_in_store)]
"""The same; what is in a store is looked for where it is read."""
SecretFile = Annotated[Path, AfterValidator(_from_folder), AfterValidator(_existing_secret)]
"""A file that holds a secret. Errors do not show the path: it may be the secret, misplaced."""
Positive = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]
Probability = Annotated[float, Field(gt=0, lt=1)]
HttpAddress = Annotated[
    str,
    Field(pattern=r"^https?://[^\s]+$", max_length=2_000),
    AfterValidator(_without_user),
    AfterValidator(_with_host),
]
TopicName = Annotated[
    str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$"), AfterValidator(_more_than_dots)
]
Sides = Positive | tuple[Positive, Positive]
LogRoot = Annotated[str | Path, AfterValidator(_log_root)]
"""The root of a scored log: a folder, or an address in an object store."""


def require_server(server: str) -> None:
    """Refuse what is no host:port; of a user and a password that stand before it none is shown.

    Raises:
        ValueError: See above.
    """
    host, _, port = server.rpartition(":")
    shown_server = server.rpartition("@")[2]
    if not (server.isprintable() and re.fullmatch(r"[^/\s]+:[0-9]+", server)):
        raise ValueError(f"expected host:port, got {shown_server!r}")
    if not 0 < int(port) <= _LAST_PORT:
        raise ValueError(f"a port is a number from 1 to {_LAST_PORT}, got {port}")
    if "@" in host:
        raise ValueError(f"expected host:port without a user, got {shown_server!r}")


def require_unread(address: str, what: str) -> None:
    """Refuse an address of HTTP to which ``what``, a secret, would go so that others can read it.

    Raises:
        ValueError: It is neither one of https nor of this machine.
    """
    parts = urlsplit(address)
    if parts.scheme.lower() != "https" and parts.hostname not in _THIS_MACHINE:
        raise ValueError(f"expected https: the {what} would go over the network as it is")


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys are refused; docstrings describe the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def is_unset(value: object) -> bool:
    """Whether a setting says nothing: null is how the environment takes back a key of the file."""
    return value in (None, {}) or (isinstance(value, Section) and not value.model_fields_set)
