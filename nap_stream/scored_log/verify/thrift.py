"""Thrift's compact protocol, in which a Parquet file describes itself, read strictly.

Readers of Parquet skip what they do not know, and differ in what they make of a field that stands
twice. Here a struct holds the fields that its table lists, of their types, each once and in order,
and nothing else. So what is read here is what every reader reads.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Wire(IntEnum):
    """Types of fields as the protocol numbers them. `BOOL` has a second number for false."""

    BOOL = 1
    I16 = 4
    I32 = 5
    I64 = 6
    BINARY = 8


_FALSE, _LIST, _STRUCT = 2, 9, 12
_MAX_VARINT_BYTES = 10
_LONG_LIST = 15
_MORE = 128
"""The bit of a number's byte that says that more follow."""
_TOO_SHORT = "it ends too early"
NEWEST_PYARROW = 26
"""The last major version of pyarrow of which it is known what it writes."""
LATER_PYARROW = (
    f"pyarrow after {NEWEST_PYARROW} may: install pyarrow<{NEWEST_PYARROW + 1} where files are "
    "written, or a newer nap-stream where they are verified"
)


@dataclass(frozen=True, slots=True)
class Fields:
    """A struct: its name for messages, and its fields by their ids.

    A field is a name and its type: a `Wire`, the `Fields` of a struct, a list of one such type, or
    None for what must not be there.
    """

    name: str
    of: "Mapping[int, tuple[str, Kind]]"


Kind = Wire | Fields | list[Any] | None


class CompactReader:
    """Reads from ``content``, from ``position`` on; ``position`` is behind what was read."""

    def __init__(self, content: bytes, position: int = 0) -> None:
        self._content = content
        self.position = position

    def struct(self, fields: Fields) -> dict[str, Any]:
        """The next struct: the values of its fields by name, without those that are not there.

        Raises:
            ValueError: It is none, or has a field that it must not have.
        """
        found: dict[str, Any] = {}
        last = 0
        while head := self._byte():
            step = head >> 4
            if not step:
                raise ValueError(
                    f"{fields.name} has fields out of order or far apart, which nap-stream does "
                    f"not write ({LATER_PYARROW})"
                )
            last += step
            name, kind = fields.of.get(last, (f"field {last}", None))
            if kind is None:
                raise ValueError(
                    f"{fields.name} has {name}, which nap-stream does not write ({LATER_PYARROW})"
                )
            found[name] = self._value(f"{fields.name}.{name}", kind, head & 15)
        return found

    def _value(self, where: str, kind: Kind, wire: int) -> Any:
        if kind is Wire.BOOL and wire in {Wire.BOOL, _FALSE}:
            return wire == Wire.BOOL
        if wire != _wire(kind):
            raise ValueError(f"{where} is of another type")
        if isinstance(kind, Fields):
            return self.struct(kind)
        if isinstance(kind, list):
            return self._list(where, kind[0])
        if kind is Wire.BINARY:
            return self._bytes(self._varint())
        number, bits = self._varint(), 16 if kind is Wire.I16 else 32 if kind is Wire.I32 else 64
        if number >> bits:
            raise ValueError(f"{where} is a number of more than {bits} bits")
        return (number >> 1) ^ -(number & 1)

    def _list(self, where: str, kind: Kind) -> list[Any]:
        head = self._byte()
        size, wire = head >> 4, head & 15
        if size == _LONG_LIST:
            size = self._varint()
        if wire != _wire(kind):
            raise ValueError(f"{where} is a list of another type")
        if size > len(self._content) - self.position:
            raise ValueError(f"{where} is longer than the file")
        return [self._value(where, kind, wire) for _ in range(size)]

    def _varint(self) -> int:
        number = byte = self._byte()
        if byte < _MORE:
            return number
        number &= _MORE - 1
        for place in range(1, _MAX_VARINT_BYTES):
            byte = self._byte()
            number |= (byte & (_MORE - 1)) << (7 * place)
            if byte < _MORE:
                if not byte:
                    break
                return number
        raise ValueError("a number is not written in its shortest form")

    def _byte(self) -> int:
        try:
            found = self._content[self.position]
        except IndexError:
            raise ValueError(_TOO_SHORT) from None
        self.position += 1
        return found

    def _bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._content):
            raise ValueError(_TOO_SHORT)
        found = self._content[self.position : end]
        self.position = end
        return found


def _wire(kind: Kind) -> int:
    if isinstance(kind, Fields):
        return _STRUCT
    if isinstance(kind, list):
        return _LIST
    return kind if kind is not None else 0


def footer_struct(content: bytes, fields: Fields) -> tuple[dict[str, Any], int]:
    """The description at a Parquet file's end, and where in the file it begins.

    Raises:
        ValueError: It is not valid, or not all of what stands there.
    """
    if len(content) < 12 or content[:4] != b"PAR1" or content[-4:] != b"PAR1":  # noqa: PLR2004
        raise ValueError("it is no Parquet file")
    (size,) = struct.unpack("<I", content[-8:-4])
    start = len(content) - 8 - size
    if start < 4:  # noqa: PLR2004 (the first mark)
        raise ValueError("its footer is longer than the file")
    reader = CompactReader(content, start)
    found = reader.struct(fields)
    if reader.position != len(content) - 8:
        raise ValueError("something stands behind its footer")
    return found, start
