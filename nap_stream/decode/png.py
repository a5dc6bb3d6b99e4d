"""PNG: the chunks that hold pixels, and what the others say that matters."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nap_stream.decode.picture import corrupt

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_OVERHEAD: Final = 12
_PIXEL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Of an interlaced image: first column and row, and the steps between columns and rows."""
_INFLATE_BYTES, _PART_BYTES = 2**20, 2**16
_MAX_CHUNKS = 2**16
"""To pass over more of them takes seconds; encoders write them of 8 KiB and more."""


@dataclass(frozen=True, slots=True)
class PngFile:
    """What is read of a file. ``pixels`` is the file without the chunks that hold no pixels.

    ``damage`` says what is not as it was written. ``significant_bits`` are those that sBIT names,
    None where it names none; ``exif`` is b"" where there is none.
    """

    pixels: bytes
    damage: str | None
    significant_bits: int | None
    exif: bytes

    def missing(self) -> str | None:
        """Say how many bytes of pixels there are, where there are fewer than the size needs.

        Pillow leaves black what is missing where the compressed data have an end.
        """
        width, height, bits, colour, _, _, interlaced = struct.unpack_from(
            ">IIBBBBB", self.pixels, 16
        )
        pixel_bits = bits * _CHANNELS.get(colour, 1)
        expected = sum(
            rows * (1 + (columns * pixel_bits + 7) // 8)
            for columns, rows in _passes(width, height, interlaced=bool(interlaced))
        )
        inflate, found = zlib.decompressobj(), 0
        for part in _compressed(self.pixels):
            rest = part
            while rest and found < expected:
                found += len(inflate.decompress(rest, _INFLATE_BYTES))
                rest = inflate.unconsumed_tail
        if found >= expected:
            return None
        return f"the pixels end after {found} of {expected} bytes"


def read_png(data: bytes) -> PngFile:
    """Take the chunks that hold pixels: the others warn, inflate, or set transparency.

    Raises:
        UnreadableError: It has too many chunks, or not the one header that begins a PNG.
    """
    kept, damage = [SIGNATURE], "its end (IEND) is missing"
    significant, exif = None, b""
    wrong = 0
    for number, (name, body, checksum, length) in enumerate(_chunks(data)):
        # Pillow takes the size from the last of them, wherever it stands.
        if (name == b"IHDR") != (number == 0):
            raise corrupt("a PNG must begin with its header (IHDR), and have no other")
        if name in _PIXEL_CHUNKS:
            kept.append(struct.pack(">I", length) + name + body + checksum)
        if name == b"IDAT" and checksum != struct.pack(">I", zlib.crc32(body, zlib.crc32(name))):
            wrong += 1
        elif name == b"sBIT" and len(body):
            significant = max(body)
        elif name == b"eXIf":
            exif = body
        elif name == b"IEND":
            damage = ""
    if wrong:
        damage = f"the checksum of {wrong} of its chunks of pixels (IDAT) is wrong"
    return PngFile(b"".join(kept), damage or None, significant, exif)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes, int]]:
    """Name, body, checksum and declared length of each chunk: of one cut off, what there is."""
    position = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if position + _OVERHEAD > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + _OVERHEAD + length
        yield name, data[position + 8 : end - 4], data[end - 4 : end], length
        position = end
        if name == b"IEND":
            return
    raise corrupt(f"a PNG of more than {_MAX_CHUNKS} chunks")


def _compressed(data: bytes) -> Iterator[bytes]:
    """The compressed pixels, in short parts: zlib copies what it leaves of one at each step."""
    for name, body, _, _ in _chunks(data):
        if name == b"IDAT":
            for start in range(0, len(body), _PART_BYTES):
                yield body[start : start + _PART_BYTES]


def _passes(width: int, height: int, *, interlaced: bool) -> Iterator[tuple[int, int]]:
    """Columns and rows of each pass that has any."""
    if not interlaced:
        yield width, height
        return
    for left, top, across, down in _PASSES:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            yield columns, rows
