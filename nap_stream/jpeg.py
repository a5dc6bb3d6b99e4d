"""JPEG by libjpeg-turbo: the same pixels as Pillow's, sooner, of the files that both read alike."""

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import simplejpeg
import torch

from nap_stream.settings.schema import LimitSettings

_SEGMENT: Final = struct.Struct(">BBH")
_FRAME: Final = struct.Struct(">BHHB")
_FRAME_LENGTH: Final = 2 + _FRAME.size
_MARK, _SOS, _PROGRESSIVE, _APP13, _APP14 = 0xFF, 0xDA, 0xC2, 0xED, 0xEE
_FRAMES: Final = frozenset({0xC0, 0xC1, _PROGRESSIVE})
_TABLES_AND_COMMENTS: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE})
_APPS: Final = range(0xE0, 0xF0)
_START_OF_IMAGE, _END_OF_IMAGE, _ADOBE = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xee"
_NO_BYTES, _ADOBE_BYTES, _APP_BYTES = 2, 14, 16
"""Lengths of segments, which count themselves. Pillow raises for some shorter ones."""
_BITS: Final = 8
_CHANNELS: Final = (1, 3)
_BLOCK: Final = 8
"""Pixels of a side of a block."""
_DIVISORS: Final = (8, 4, 2)
MAX_SEGMENTS = 4_096
"""Before the pixels: a file of 20 MB could hold five million, which take Pillow 20 s."""
_DAMAGE: Final = (
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
)
"""How libjpeg's warnings begin that are of the pixels (jerror.h)."""


class JpegHeader(NamedTuple):
    """What the header declares, in pixels. ``is_one_scan``: libjpeg takes no second one."""

    width: int
    height: int
    is_one_scan: bool


def plain_header(data: bytes) -> JpegHeader | None:
    """Read the header of a Huffman-coded JPEG with one or three channels of 8 bits.

    Returns:
        None where it is another, or where Pillow would stumble over what libjpeg skips.
    """
    frame = None
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + _SEGMENT.size >= len(data):
            return None
        mark, marker, length = _SEGMENT.unpack_from(data, position)
        start, position = position + _SEGMENT.size, position + 2 + length
        if mark != _MARK or position >= len(data):
            return None
        if marker == _SOS:
            return _header(frame, data[start])
        if marker in _FRAMES:
            if frame is not None or length < _FRAME_LENGTH:
                return None
            frame = marker, *_FRAME.unpack_from(data, start)
        elif not _is_passed_over(data, marker, length, position):
            return None
    return None


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A JPEG that another decoder may take: its size in pixels."""

    width: int
    height: int
    format: str = "jpeg"


def undecoded_jpeg(data: bytes | None, limits: LimitSettings) -> Undecoded | None:
    """Check a JPEG that decoders other than libjpeg take as well, without decoding it.

    Returns:
        None for all else: other formats, progressive files, what is beyond the limits or seems to
        be cut off, and what says of itself how its colours are coded (Adobe's marker).
    """
    if data is None or not data.startswith(_START_OF_IMAGE) or len(data) > limits.max_image_bytes:
        return None
    header = plain_header(data)
    if header is None or not header.is_one_scan or not data.endswith(_END_OF_IMAGE):
        return None
    if header.width * header.height > limits.max_image_pixels or _ADOBE in data:
        return None
    return Undecoded(header.width, header.height)


def _is_passed_over(data: bytes, marker: int, length: int, end: int) -> bool:
    """Whether this is a segment from which Pillow takes nothing, or nothing that can fail."""
    if marker in _TABLES_AND_COMMENTS:
        return length >= _NO_BYTES
    # Pillow looks for a length behind a Photoshop resource's name and number.
    is_cut = marker == _APP13 and data.startswith(b"8BIM", end - 6)
    shortest = _ADOBE_BYTES if marker == _APP14 else _APP_BYTES
    return marker in _APPS and length >= shortest and not is_cut


def _header(frame: tuple[int, ...] | None, channels_of_scan: int) -> JpegHeader | None:
    if frame is None:
        return None
    marker, bits, height, width, channels = frame
    if bits != _BITS or channels not in _CHANNELS or width == 0 or height == 0:
        return None
    return JpegHeader(width, height, marker != _PROGRESSIVE and channels_of_scan == channels)


def divisor(width: int, height: int, at_least: tuple[int, int] | None) -> int:
    """By how much to divide a JPEG's sides so that they stay ``at_least`` (height, width).

    It is 8, 4, 2 or 1: the fractions that libjpeg has fast code for and that Pillow offers as well.
    1 where ``at_least`` is None.
    """
    # Of less than a block, simplejpeg could take another fraction that gives the same size.
    if at_least is None or min(width, height) < _BLOCK:
        return 1
    room = min(height // at_least[0], width // at_least[1])
    return next((found for found in _DIVISORS if found <= room), 1)


def decode_jpeg(
    data: bytes, header: JpegHeader, at_least: tuple[int, int] | None
) -> torch.Tensor | str:
    """Decode to RGB, uint8, shape (3, height, width), interleaved in memory, without a copy.

    Where `divisor` is more than 1, the sides are divided by it and rounded up.

    Returns:
        What libjpeg-turbo says where it fails or warns.
    """
    height = width = 0
    if (divided := divisor(header.width, header.height, at_least)) > 1:
        height, width = -(-header.height // divided), -(-header.width // divided)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=height, min_width=width)
    # It raises ValueError for what libjpeg says, and others for what it does not expect.
    except Exception as error:  # noqa: BLE001
        return str(error)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def is_damage(text: str) -> bool:
    """Whether libjpeg says that pixels are not what was encoded; it also warns of odd headers."""
    return text.startswith(_DAMAGE)


def warning_of(data: bytes) -> str | None:
    """What libjpeg-turbo warns of in a JPEG that Pillow has decoded; None where it is content."""
    for colours in ("RGB", "CMYK"):
        try:
            simplejpeg.decode_jpeg(data, colours)
        except Exception as error:  # noqa: BLE001  see `decode_jpeg`
            text = str(error)
            # simplejpeg also fails on files that it does not take, of which Pillow takes some.
            if text.startswith(_DAMAGE):
                return text
        else:
            return None
    return None
