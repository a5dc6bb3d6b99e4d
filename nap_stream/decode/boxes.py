"""AVIF and HEIC: the boxes of their container, checked before a decoder sees the file.

What a file declares as its size (``ispe``) need not be the size of the frames in it. libheif bounds
those by itself; what decodes AVIF would make room for 16,384 x 16,384 pixels. So the sizes that the
AV1 sequence headers name are read, too. References to other files are refused. Of a file with an
image sequence, the still image is read: the track of the sequence (``moov``) is hidden.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nap_stream.decode.picture import corrupt, require_pixels, unsupported
from nap_stream.decode.unreadable import varint

_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIC_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
)
_MAX_BOXES, _MAX_ITEMS, _MAX_EXTENTS, _MAX_OBUS = 4_096, 1_024, 4_096, 1_024
_MAX_METADATA_BYTES = 2**28
"""Of all items but frames, for each item: libheif copies them for each image."""
_FRAME_ITEMS: Final = frozenset({b"av01", b"hvc1", b"grid", b"iden", b"iovl"})
_CONTAINERS: Final = frozenset({b"iprp", b"ipco"})
_SEQUENCE_HEADER = 1
_IN_FILE, _IN_IDAT = 0, 1


def brand(data: bytes) -> str | None:
    """``avif`` or ``heic``, as the file's first box says; None for others."""
    if data[4:8] != b"ftyp":
        return None
    (size,) = struct.unpack_from(">I", data)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256), 4))}
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heic" if brands & _HEIC_BRANDS else None


def checked(data: bytes, max_pixels: int) -> bytes:
    """The file as a decoder may have it.

    Raises:
        UnreadableError: It is beyond the limits, refers to other files, or cannot be followed.
    """
    try:
        return _checked(data, max_pixels)
    except (struct.error, IndexError) as error:
        raise corrupt("its boxes are cut off") from error


def _checked(data: bytes, max_pixels: int) -> bytes:
    hidden, has_items = bytearray(data), False
    for name, start, end in _boxes(data, 0, len(data)):
        if name == b"moov":
            hidden[start - 4 : start] = b"free"
        elif name == b"meta":
            has_items = True
            _check_items(data, _Meta.read(data, start + 4, end), max_pixels)
    if not has_items:
        raise unsupported("an image sequence without a still image is not read")
    if data[8:12] == b"avis":
        hidden[8:12] = b"avif"
    return bytes(hidden)


@dataclass(frozen=True, slots=True)
class _Item:
    number: int
    place: int
    """Where its bytes lie: `_IN_FILE` or `_IN_IDAT`."""
    extents: list[tuple[int, int]]
    """Offset and length of each part."""


@dataclass(frozen=True, slots=True)
class _Meta:
    """What a box ``meta`` says of the items of a file."""

    kinds: dict[int, bytes]
    items: list[_Item]
    sizes: list[tuple[int, int]]
    inline: tuple[int, int]

    @classmethod
    def read(cls, data: bytes, start: int, end: int) -> "_Meta":
        kinds: dict[int, bytes] = {}
        items: list[_Item] = []
        sizes: list[tuple[int, int]] = []
        inline = 0, 0
        for name, first, last in _boxes(data, start, end):
            if name == b"iinf":
                kinds |= dict(_kinds(data, first, last))
            elif name == b"iloc":
                items += _Locations(data, first).items()
            elif name == b"iprp":
                sizes += _sizes(data, first, last)
            elif name == b"idat":
                inline = first, last
        return cls(kinds, items, sizes, inline)


def _check_items(data: bytes, meta: _Meta, max_pixels: int) -> None:
    for size in meta.sizes:
        require_pixels(size, max_pixels)
    metadata = 0
    for item in meta.items:
        kind = meta.kinds.get(item.number)
        length = sum(length for _, length in item.extents)
        if length > len(data):
            raise corrupt("an item is longer than the file")
        metadata += 0 if kind in _FRAME_ITEMS else length
        if kind == b"av01":
            for size in _coded_sizes(_bytes_of(data, item, meta.inline)):
                require_pixels(size, max_pixels)
    if metadata * len(meta.items) > _MAX_METADATA_BYTES:
        raise corrupt(f"{metadata} bytes of metadata for {len(meta.items)} items")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the body of each box."""
    count = 0
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        last = end if size == 0 else start + size
        count += 1
        if last < body or last > end or count > _MAX_BOXES:
            raise corrupt(f"the box {name!r} is cut off, or there are too many")
        yield name, body, last
        start = last


def _sizes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    for name, first, last in _boxes(data, start, end):
        if name in _CONTAINERS:
            yield from _sizes(data, first, last)
        elif name == b"ispe":
            width, height = struct.unpack_from(">II", data, first + 4)
            yield width, height


def _kinds(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Number and kind of each item."""
    start += 6 if data[start] == 0 else 8
    for name, first, _ in _boxes(data, start, end):
        if name == b"infe":
            layout = ">HH4s" if data[first] < 3 else ">IH4s"  # noqa: PLR2004 (version 3)
            number, _, kind = struct.unpack_from(layout, data, first + 4)
            yield number, kind


class _Locations:
    """Reads a box ``iloc``."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._at = data, start + 6
        self._version = data[start]
        self._widths = data[start + 4] >> 4, data[start + 4] & 15
        self._base, self._index = data[start + 5] >> 4, data[start + 5] & 15

    def items(self) -> Iterator[_Item]:
        wide = 2 if self._version < 2 else 4  # noqa: PLR2004
        count = self._next(wide)
        if count > _MAX_ITEMS:
            raise corrupt(f"{count} items")
        parts = 0
        for _ in range(count):
            number = self._next(wide)
            place = self._next(2) & 15 if self._version else _IN_FILE
            if self._next(2):
                raise unsupported("it refers to another file")
            if place not in {_IN_FILE, _IN_IDAT}:
                raise unsupported("items made of others' bytes are not read")
            base, extents = self._next(self._base), self._next(2)
            parts += extents
            if parts > _MAX_EXTENTS:
                raise corrupt(f"items in more than {_MAX_EXTENTS} parts")
            yield _Item(number, place, [self._extent(base) for _ in range(extents)])

    def _extent(self, base: int) -> tuple[int, int]:
        self._next(self._index if self._version else 0)
        offset = base + self._next(self._widths[0])
        return offset, self._next(self._widths[1])

    def _next(self, width: int) -> int:
        end = self._at + width
        if end > len(self._data):
            raise corrupt("its boxes are cut off")
        found = int.from_bytes(self._data[self._at : end])
        self._at = end
        return found


def _bytes_of(data: bytes, item: _Item, inline: tuple[int, int]) -> bytes:
    start, end = inline if item.place == _IN_IDAT else (0, len(data))
    # Of a length of 0, the item goes on to the end.
    parts = [
        data[start + offset : min(end, start + offset + length) if length else end]
        for offset, length in item.extents
    ]
    if sum(map(len, parts)) > len(data):
        raise corrupt("an item is longer than the file")
    return b"".join(parts)


def _coded_sizes(frames: bytes) -> Iterator[tuple[int, int]]:
    """The largest width and height that each sequence header of AV1 allows."""
    at = count = 0
    while at < len(frames):
        header = frames[at]
        kind, has_extension, has_size = header >> 3 & 15, header & 4, header & 2
        at += 2 if has_extension else 1
        size = len(frames) - at
        if has_size:
            size, at = varint(frames, at)
            if at < 0:
                raise corrupt("a number of AV1 has no end")
        count += 1
        if count > _MAX_OBUS:
            raise corrupt(f"more than {_MAX_OBUS} units of AV1")
        if kind == _SEQUENCE_HEADER:
            yield _sequence_size(frames[at : at + min(size, 64)])
        at += size


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._number, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise corrupt("a sequence header of AV1 is cut off")
        return self._number >> self._left & (1 << count) - 1


def _sequence_size(header: bytes) -> tuple[int, int]:
    """Width and height of a sequence header: section 5.5.1 of the AV1 specification."""
    bits = _Bits(header)
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        _pass_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _pass_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    has_model = False
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            _pass_variable(bits)
        if has_model := bool(bits.take(1)):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # noqa: PLR2004 (levels from 4.0 up have a tier)
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)


def _pass_variable(bits: _Bits) -> None:
    zeros = 0
    while not bits.take(1):
        zeros += 1
    bits.take(min(zeros, 32))
