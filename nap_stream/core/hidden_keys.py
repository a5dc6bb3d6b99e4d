"""Keys that name a camera or a person, as the log holds them: in clear, hashed or not at all.

A hash is ``hmac-sha256:`` and the HMAC-SHA-256 (RFC 2104) of the value under a secret, in hex. The
same value gives the same hash, whether it was a message's key or a header's. Whoever has the secret
can find a value by trying; who has not cannot.
"""

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

PREFIX = b"hmac-sha256:"
_HASHED = re.compile(rb"hmac-sha256:[0-9a-f]{64}")
Headers = Sequence[tuple[str, bytes | None]]
"""Names and values of a message's headers, in order."""


class Stored(StrEnum):
    """How the log holds a value."""

    CLEAR = "clear"
    HASHED = "hashed"
    DROPPED = "dropped"


def is_hash(value: bytes) -> bool:
    """Whether a value looks like a hash of `HiddenKeys`."""
    return _HASHED.fullmatch(value) is not None


def told_apart(keys: Iterable[bytes | None]) -> str:
    """What is to be said of keys that are counted, of which some are hashes; empty where none is.

    A camera whose keys were stored in clear at one time and as hashes at another counts as two.
    """
    kinds = {is_hash(key) for key in keys if key}
    told = "rows of one camera may be counted apart"
    return "" if len(kinds) <= 1 else f"some keys were stored in clear, and some as hashes: {told}"


@dataclass(frozen=True, slots=True)
class HiddenKeys:
    """How the message's key and the values of headers are stored; other headers are in clear.

    ``secret`` is needed where anything is hashed. Its text does not show it.
    """

    key: Stored = Stored.CLEAR
    headers: tuple[tuple[str, Stored], ...] = ()
    secret: bytes = field(default=b"", repr=False)

    @property
    def hides(self) -> bool:
        """Whether anything is not in clear."""
        return any(each is not Stored.CLEAR for each in (self.key, *dict(self.headers).values()))

    def hashed(self, value: bytes) -> bytes:
        """The hash of a value."""
        return PREFIX + hmac.new(self.secret, value, "sha256").hexdigest().encode()

    def of_key(self, value: bytes | None) -> bytes | None:
        """A message's key as it is stored."""
        return self._stored(self.key, value)

    def of_headers(self, headers: Headers) -> Headers:
        """A message's headers as they are stored: one that is dropped is not among them."""
        how = dict(self.headers)
        if not how:
            return headers
        kept = ((name, value, how.get(name, Stored.CLEAR)) for name, value in headers)
        return [
            (name, self._stored(each, value))
            for name, value, each in kept
            if each is not Stored.DROPPED
        ]

    def of_stored(self, key_by: str, value: bytes | None) -> bytes | None:
        """What a stored value is under these settings; it may be of a time with others.

        ``key_by`` is ``key`` or ``header:NAME``. A hash stays, also of another secret: what it was
        is not known.
        """
        name = key_by.partition(":")[2]
        how = dict(self.headers).get(name, Stored.CLEAR) if name else self.key
        is_done = how is Stored.HASHED and value is not None and is_hash(value)
        return value if is_done else self._stored(how, value)

    def _stored(self, how: Stored, value: bytes | None) -> bytes | None:
        if how is Stored.CLEAR:
            return value
        # An empty key is as none: its hash would tell them apart.
        return (self.hashed(value) if value else value) if how is Stored.HASHED else None


CLEAR = HiddenKeys()
