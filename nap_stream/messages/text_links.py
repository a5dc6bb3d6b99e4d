"""Links that read text: JSON, base64, data URIs, and notifications of object stores."""

import binascii
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Literal
from urllib.parse import unquote_plus, unquote_to_bytes

from nap_stream.messages.paths import Fields
from nap_stream.messages.pieces import (
    Link,
    Piece,
    Reference,
    Unreadable,
    as_text,
    kind_of,
    shown,
)
from nap_stream.records import Status
from nap_stream.settings.messages import JsonField
from nap_stream.settings.schema import LimitSettings

MAX_JSON_VALUES = 100_000
"""Each takes some sixty bytes of memory, and two of the document."""
FRAMING_BYTES = 5
_UNQUOTED_BYTES = 2**14
_JSON_MARKS = (b"[", b"{", b",")
_WHITESPACE: Final = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_DATA_URI = re.compile(
    rb"\s*data:(?P<type>[^,;]{0,200})(?P<parameters>(?:;[^,;]{1,200}){0,10}),", re.IGNORECASE
)
_BINARY_TYPES = ("application/octet-stream", "binary/octet-stream")


class JsonFieldLink(Link):
    """Reads a JSON document in UTF-8, -16 or -32, and takes a field of it."""

    def __init__(self, settings: JsonField, limits: LimitSettings) -> None:
        self._is_framed = settings.confluent
        self._fields = Fields("json_field", settings, limits.max_images_per_message)

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The field's value, or one of each element."""
        value = piece.value
        if self._is_framed:
            value = unframed(value, "json_field")[1]
        return self._fields.pieces(piece, parsed(value, "json_field"))


def unframed(value: Any, link: str) -> tuple[int, bytes]:
    """The schema's id, and what comes after a schema registry's framing."""
    if not isinstance(value, bytes) or len(value) < FRAMING_BYTES:
        raise Unreadable(f"{link}: too short for a schema registry's framing")
    if value[0] != 0:
        raise Unreadable(
            f"{link}: no schema registry's framing, which begins with 00: {shown(value)}"
        )
    return int.from_bytes(value[1:FRAMING_BYTES], "big"), value[FRAMING_BYTES:]


def parsed(value: Any, link: str) -> Any:
    """The tree of a JSON document, bounded in depth and in the number of its values."""
    if not isinstance(value, bytes | str):
        raise Unreadable(f"{link}: got {kind_of(value)}, expected text")
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    if sum(data.count(mark) for mark in _JSON_MARKS) > MAX_JSON_VALUES:
        raise Unreadable(f"{link}: more than {MAX_JSON_VALUES} values in one document")
    try:
        return json.loads(data)
    except RecursionError:
        raise Unreadable(f"{link}: the JSON document is nested too deep") from None
    except ValueError as error:
        hint = ""
        if data[:1] == b"\0" and data[FRAMING_BYTES : FRAMING_BYTES + 1] in (b"{", b"["):
            hint = ": a schema registry's framing stands before it, set confluent: true"
        why = str(error).encode("ascii", "backslashreplace").decode()[:80]
        raise Unreadable(f"{link}: not JSON ({why}); {shown(data)}{hint}") from None


class EncodedLink(Link):
    """Decodes a data URI, or, where the link is ``base64``, base64 too."""

    def __init__(self, link: Literal["base64", "data_uri"], limits: LimitSettings) -> None:
        self._link, self._max_bytes = link, limits.max_image_bytes

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The bytes."""
        data = _encoded(piece.value, self._link)
        is_uri = data[:64].lstrip(_WHITESPACE)[:5].lower() == b"data:"
        decode = data_of_uri if is_uri or self._link == "data_uri" else decoded_base64
        return (piece.with_value(decode(data, self._link, self._max_bytes)),)


def _encoded(value: Any, link: str) -> bytes:
    if isinstance(value, bytes):
        return value
    # What is not ASCII cannot be base64: the error about it shows the first such character.
    return as_text(value, link).encode("utf-8", "backslashreplace")


def decoded_base64(data: bytes, link: str, max_bytes: int) -> bytes:
    """Decode base64 of either alphabet, with or without white space and padding."""
    if len(data) // 4 * 3 > 2 * max_bytes:
        raise _too_large(link, len(data), max_bytes)
    if data and len(data) // 4 * 3 <= max_bytes:
        # Nearly all of it is of the plain form, which is read several times as fast.
        with suppress(binascii.Error):
            return binascii.a2b_base64(data, strict_mode=True)
    plain = data.translate(_URL_SAFE, _WHITESPACE).rstrip(b"=")
    if not plain:
        raise Unreadable(f"{link}: there is no text", Status.EMPTY)
    if (wrong := _NOT_BASE64.search(plain)) is not None:
        hint = " It is a JPEG already." if data[:3] == b"\xff\xd8\xff" else ""
        raise Unreadable(
            f"{link}: not base64: byte {wrong[0].hex()} at {wrong.start()}; {shown(data)}.{hint}"
        )
    if len(plain) * 3 // 4 > max_bytes:
        raise _too_large(link, len(data), max_bytes)
    try:
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4))
    except binascii.Error:
        raise Unreadable(f"{link}: the base64 is cut off after {len(plain)} characters") from None


def _too_large(link: str, size: int, max_bytes: int) -> Unreadable:
    return Unreadable(
        f"{link}: {size} bytes of text hold more than limits.max_image_bytes = {max_bytes}",
        Status.TOO_LARGE,
    )


def data_of_uri(data: bytes, link: str, max_bytes: int) -> bytes:
    """Decode a data URI. Its media type must be an image's, or say nothing."""
    match = _DATA_URI.match(data)
    if match is None:
        raise Unreadable(f"{link}: no data URI (data:image/jpeg;base64,…); {shown(data)}")
    media_type = match["type"].strip().lower().decode("ascii", "backslashreplace")
    if media_type and not media_type.startswith("image/") and media_type not in _BINARY_TYPES:
        raise Unreadable(f"{link}: the data is {media_type[:80]}, no image", Status.UNSUPPORTED)
    body = data[match.end() :]
    if match["parameters"].lower().rsplit(b";", 1)[-1].strip() == b"base64":
        return decoded_base64(_unquoted(body), link, max_bytes)
    plain = _unquoted(body)
    if len(plain) > max_bytes:
        raise _too_large(link, len(body), max_bytes)
    if not plain:
        raise Unreadable(f"{link}: there is no data", Status.EMPTY)
    return plain


def _unquoted(body: bytes) -> bytes:
    """Decode %XX, a part at a time: each of them is an object for a moment."""
    if b"%" not in body:
        return body
    parts, at = [], 0
    while at < len(body):
        end = at + _UNQUOTED_BYTES
        # Not within one.
        begun = body.find(b"%", end - 2, end)
        end = end if begun < 0 else begun
        parts.append(unquote_to_bytes(body[at:end]))
        at = end
    return b"".join(parts)


class S3EventLink(Link):
    """Reads a notification of S3, MinIO or EventBridge, alone or in one of SNS."""

    def __init__(self, limits: LimitSettings) -> None:
        self._max_pieces = limits.max_images_per_message

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """A reference for each object of the notification."""
        value = piece.value
        tree = value if isinstance(value, dict) else parsed(value, "s3_event")
        if isinstance(tree, dict) and isinstance(tree.get("Message"), str) and "Type" in tree:
            tree = parsed(tree["Message"], "s3_event")
        references = list(self._references(tree))
        return [piece.with_value(reference) for reference in references]

    def _references(self, tree: Any) -> "Iterator[Reference | Unreadable]":
        if not isinstance(tree, dict):
            raise Unreadable(f"s3_event: got {kind_of(tree)}, expected a notification")
        if tree.get("Event") == "s3:TestEvent":
            raise Unreadable("s3_event: a test notification, which names no object", Status.EMPTY)
        if isinstance(detail := tree.get("detail"), dict):
            name = str(tree.get("detail-type", ""))
            # EventBridge does not encode keys, and names the version otherwise.
            yield _reference(detail, name, is_created=name == "Object Created", is_encoded=False)
            return
        records = tree.get("Records")
        if not isinstance(records, list):
            names = (
                ", ".join(map(str, list(tree)[:10])).encode("ascii", "backslashreplace").decode()
            )
            raise Unreadable(f"s3_event: no Records and no detail; fields are {names[:100]}")
        if not records:
            raise Unreadable("s3_event: Records is empty", Status.EMPTY)
        if len(records) > self._max_pieces:
            raise Unreadable(
                f"s3_event: {len(records)} records, more than limits.max_images_per_message = "
                f"{self._max_pieces}",
                Status.TOO_LARGE,
            )
        for record in records:
            name = str(record.get("eventName", "")) if isinstance(record, dict) else ""
            is_created = "ObjectCreated:" in name or "ObjectAccessed:" in name
            body = record.get("s3") if isinstance(record, dict) else None
            yield _reference(body, name, is_created=is_created, is_encoded=True)


def _reference(
    body: Any, event: str, *, is_created: bool, is_encoded: bool
) -> "Reference | Unreadable":
    """The object that a record names. One record that names none spoils only its own row."""
    event = event[:80].encode("ascii", "backslashreplace").decode()
    bucket = body.get("bucket") if isinstance(body, dict) else None
    named = body.get("object") if isinstance(body, dict) else None
    name = bucket.get("name") if isinstance(bucket, dict) else None
    key = named.get("key") if isinstance(named, dict) else None
    if not isinstance(name, str) or not isinstance(key, str) or not name or not key:
        return Unreadable("s3_event: a record without bucket.name and object.key")
    if not is_created:
        return Unreadable(
            f"s3_event: {event or 'no eventName'}, which creates no object", Status.TOMBSTONE
        )
    assert isinstance(named, dict)
    version = named.get("versionId", named.get("version-id"))
    size = named.get("size")
    return Reference(
        name,
        unquote_plus(key) if is_encoded else key,
        version if isinstance(version, str) and version else None,
        size if isinstance(size, int) and not isinstance(size, bool) else None,
    )
