"""TIFF and EXIF: the first directory, read within limits, before libtiff sees the file.

Pillow reads every entry of a directory, and each can claim the whole file: 65,535 entries of a file
of 20 MB would take a terabyte. libtiff makes room for a tile of whatever size is declared. So the
directory is read here first, and Pillow gets the file with a new one: of the entries that say where
the pixels lie and how, and of no other. There are no second pages, EXIF or sub-directories in it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nap_stream.decode.picture import corrupt, require_pixels, unsupported

MARKS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin, BigTIFF among them."""
ORIENTATION: Final = 274
_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_KEPT: Final = frozenset(
    {
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, 262),
        *(266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
        *(_TILE_WIDTH, _TILE_HEIGHT, 324, 325, 338, 339, 347, 530, 532),
    }
)
"""Photometric interpretation, fill order, strips, samples, planes, options of CCITT, predictor,
colours, tiles, extra samples, sample format, tables of JPEG, subsampling and reference colours."""
_COMPRESSIONS: Final = {
    1: "none",
    2: "CCITT",
    3: "CCITT T.4",
    4: "CCITT T.6",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32_773: "PackBits",
    32_946: "deflate",
}
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by its type."""
_SHORT, _LONG = 3, 4
_HEADER, _ENTRY = 8, 12
_INLINE = 4
"""Bytes of a value that stand in the entry itself."""
_MAX_ENTRIES = 512
_MAX_VALUES, _MAX_COLOURS = 2**16, 3 * 2**16
"""Of one entry: strips or tiles, of which each takes Pillow time; colours of 16 bits."""
_COLOURS = 320
_MIN_TILE_PIXELS = 2**20
"""Tiles may be so large, or twice the image."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory: ``value`` is its last four bytes, the value or where it stands."""

    tag: int
    kind: int
    count: int
    value: bytes

    @property
    def size(self) -> int:
        """Bytes of all its values."""
        return _SIZES.get(self.kind, 1) * self.count


def pixel_directory(data: bytes, max_pixels: int) -> tuple[bytes, tuple[int, int], int]:
    """Check a file's first directory, and make one of what says where the pixels are.

    Returns:
        The file with that directory alone; width and height; the orientation, 1 to 8.

    Raises:
        UnreadableError: The file is not one that is read, or beyond the limits.
    """
    if data[2:4] in {b"+\0", b"\0+"}:
        raise unsupported("BigTIFF is not read: write a TIFF")
    order = _order(data)
    entries = {entry.tag: entry for entry in _entries(data, order)}
    width, height = (_number(entries, tag, order) for tag in (_WIDTH, _HEIGHT))
    if not width or not height:
        raise corrupt("a TIFF without a width and a height")
    size = width, height
    require_pixels(size, max_pixels)
    compression = _number(entries, _COMPRESSION, order) or 1
    if compression not in _COMPRESSIONS:
        known = ", ".join(sorted(set(_COMPRESSIONS.values())))
        raise unsupported(f"TIFF compression {compression} is not read (but {known} are)", size)
    tile = [_number(entries, tag, order) or 0 for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if tile[0] * tile[1] > max(_MIN_TILE_PIXELS, 2 * width * height):
        raise corrupt(f"TIFF tiles of {tile[0]} x {tile[1]} pixels of an image of that size", size)
    for entry in entries.values():
        _require_within(entry, data, order)
    orientation = _number(entries, ORIENTATION, order) or 1
    kept = sorted((e for tag, e in entries.items() if tag in _KEPT), key=lambda entry: entry.tag)
    return _rewritten(data, order, kept), size, orientation


def exif_orientation(data: bytes) -> int:
    """The orientation that EXIF data name, 1 to 8; 1 where they name none or are not whole."""
    try:
        order = _order(data)
        for entry in _entries(data, order):
            if entry.tag == ORIENTATION:
                return _number({ORIENTATION: entry}, ORIENTATION, order) or 1
    # Whatever else is in EXIF data says nothing of the pixels.
    except Exception:  # noqa: BLE001
        return 1
    return 1


def _order(data: bytes) -> str:
    """The byte order, as struct has it."""
    return "<" if data[:2] == b"II" else ">"


def _entries(data: bytes, order: str) -> Iterator[Entry]:
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start < _HEADER or start + 2 > len(data):
        raise corrupt("the TIFF directory is not in the file")
    (count,) = struct.unpack_from(f"{order}H", data, start)
    if count > _MAX_ENTRIES:
        raise corrupt(f"a TIFF directory of {count} entries")
    if start + 2 + count * _ENTRY > len(data):
        raise corrupt("the TIFF directory is cut off")
    for number in range(count):
        place = start + 2 + number * _ENTRY
        tag, kind, values, value = struct.unpack_from(f"{order}HHI4s", data, place)
        yield Entry(tag, kind, values, value)


def _number(entries: dict[int, Entry], tag: int, order: str) -> int | None:
    """The value of an entry of one integer."""
    entry = entries.get(tag)
    if entry is None or entry.count != 1 or entry.kind not in {_SHORT, _LONG}:
        return None
    (found,) = struct.unpack_from(f"{order}{'H' if entry.kind == _SHORT else 'I'}", entry.value)
    return int(found)


def _require_within(entry: Entry, data: bytes, order: str) -> None:
    if entry.tag not in _KEPT:
        return
    most = _MAX_COLOURS if entry.tag == _COLOURS else _MAX_VALUES
    if entry.count > most or entry.kind not in _SIZES:
        raise corrupt(f"TIFF tag {entry.tag} has {entry.count} values of type {entry.kind}")
    if entry.size > _INLINE:
        (place,) = struct.unpack(f"{order}I", entry.value)
        if place + entry.size > len(data):
            raise corrupt(f"the values of TIFF tag {entry.tag} are not in the file: it is cut off")


def _rewritten(data: bytes, order: str, entries: list[Entry]) -> bytes:
    """The file with another directory in the place of its own, which is no shorter.

    So nothing comes behind the file's end that could pass for pixels of one that is cut off.
    """
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(
        struct.pack(f"{order}HHI4s", entry.tag, entry.kind, entry.count, entry.value)
        for entry in entries
    )
    found = bytearray(data)
    found[start : start + len(directory) + 4] = directory + bytes(4)
    return bytes(found)
