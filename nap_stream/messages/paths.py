"""Fields of structures, by paths: of what JSON, Avro and Protobuf are read to."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nap_stream.messages.pieces import Piece, Unreadable, kind_of, shown
from nap_stream.records import Status
from nap_stream.settings.messages import FieldPaths, steps_of

MAX_FIELDS_SHOWN = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS_A_MS = {"s": 1e-3, "ms": 1, "us": 1_000, "ns": 1_000_000}


class Fields:
    """Takes the pieces of a structure that settings name."""

    def __init__(self, link: str, paths: FieldPaths, max_pieces: int) -> None:
        self._link, self._max_pieces = link, max_pieces
        self._unit = paths.event_time_unit
        self._each = None if paths.each is None else steps_of(paths.each)
        self._path = steps_of(paths.path or "")
        self._key = None if paths.key is None else steps_of(paths.key)
        self._time = None if paths.event_time is None else steps_of(paths.event_time)

    def pieces(self, piece: Piece, root: Any, unit: str | None = None) -> Sequence[Piece]:
        """The pieces of a structure. An element that is wrong spoils only its own piece.

        ``unit`` is that of the event time where the structure's schema says it.

        Raises:
            Unreadable: A field is not there, is null, or is of another kind.
        """
        unit = unit or self._unit
        if self._each is None:
            return (self._one(piece, root, unit),)
        found = []
        for element in self._elements(root, self._each):
            try:
                found.append(self._one(piece, element, unit))
            except Unreadable as unreadable:
                found.append(piece.with_value(unreadable))
        return found

    def _elements(self, root: Any, path: Sequence[str | int]) -> Sequence[Any]:
        found, name = self._at(root, path), f"{self._link}: {_dotted(path) or 'the document'}"
        if not isinstance(found, list):
            raise Unreadable(f"{name} is {kind_of(found)}, not an array")
        if not found:
            raise Unreadable(f"{name} is empty", Status.EMPTY)
        if len(found) > self._max_pieces:
            raise Unreadable(
                f"{name} has {len(found)} elements, more than "
                f"limits.max_images_per_message = {self._max_pieces}",
                Status.TOO_LARGE,
            )
        return found

    def _one(self, piece: Piece, node: Any, unit: str) -> Piece:
        value = self._at(node, self._path)
        if value is None:
            raise Unreadable(
                f"{self._link}: {_dotted(self._path) or 'the element'} is null", Status.TOMBSTONE
            )
        if isinstance(value, list) and self._path:
            raise Unreadable(
                f"{self._link}: {_dotted(self._path)} is an array: name it in each, or an element "
                f"of it as {_dotted((*self._path, 0))}"
            )
        key, has_key, event_time_ms = piece.key, piece.has_key, piece.event_time_ms
        if self._key is not None:
            key, has_key = _key_of(self._at(node, self._key), self._link, self._key), True
        if self._time is not None:
            event_time_ms = time_ms(self._at(node, self._time), unit)
        return Piece(value, key, has_key, event_time_ms, piece.source_uri)

    def _at(self, node: Any, steps: Sequence[str | int]) -> Any:
        for number, step in enumerate(steps):
            node = self._step(node, step, steps[: number + 1])
        return node

    def _step(self, node: Any, step: str | int, path: Sequence[str | int]) -> Any:
        if isinstance(step, int):
            if isinstance(node, list) and step < len(node):
                return node[step]
            what = f"{len(node)} elements" if isinstance(node, list) else kind_of(node)
            raise Unreadable(f"{self._link}: no {_dotted(path)}: {_dotted(path[:-1])} is {what}")
        if isinstance(node, Mapping):
            if step in node:
                return node[step]
            raise Unreadable(f"{self._link}: no field {_dotted(path)}; fields are {_names(node)}")
        problem = f"{_dotted(path[:-1]) or 'it'} is {kind_of(node)}"
        if isinstance(node, list):
            problem += ": name it in each, or an element of it by its number"
        raise Unreadable(f"{self._link}: no field {_dotted(path)}: {problem}")


def time_ms(value: Any, unit: str) -> int | None:
    """Milliseconds since the epoch of a number in a unit, or of a time in RFC 3339; else None."""
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return None
        moment = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return int(value * 1_000) if unit == "s" else int(value // _TICKS_A_MS[unit])
    except (OverflowError, ValueError):
        return None


def _key_of(value: Any, link: str, path: Sequence[str | int]) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value).encode("utf-8", "backslashreplace")
    raise Unreadable(f"{link}: the key {_dotted(path)} is {kind_of(value)}, expected text or bytes")


def _dotted(steps: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def _names(node: Mapping[Any, Any]) -> str:
    names = list(_first(node, MAX_FIELDS_SHOWN))
    more = f" and {len(node) - len(names)} more" if len(node) > len(names) else ""
    return ", ".join(names) + more if names else "none"


def _first(node: Mapping[Any, Any], count: int) -> Iterator[str]:
    for number, name in enumerate(node):
        if number == count:
            return
        yield shown(str(name)).strip("'\"")
