"""The image formats that are read: told by their first bytes, checked before Pillow opens them.

Each is opened by Pillow's plugin of that format itself: `Image.open` would try others, and its
limit on pixels is a global of the process that warns. What does not hold pixels, and could take
memory or time without bound, is left out of what the plugin gets.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from nap_stream.decode import boxes, png, tiff
from nap_stream.decode.picture import corrupt, require_pixels, unsupported
from nap_stream.decode.raw import NPY_MAGIC
from nap_stream.jpeg import MAX_SEGMENTS

FORMATS: Final = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC or .npy"
_JPEG: Final = b"\xff\xd8\xff"
_MARKS: Final = (
    (png.SIGNATURE, "png"),
    (b"RIFF", "webp"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    *((mark, "tiff") for mark in tiff.MARKS),
    (NPY_MAGIC, "npy"),
    (b"BM", "bmp"),
)
_EXIF: Final = b"Exif\0\0"
_BMP_HEADERS: Final = frozenset(struct.pack("<I", n) for n in (12, 40, 52, 56, 64, 108, 124))
_BMP_PLAIN, _BMP_BITFIELDS = 0, 3
_MAX_CHUNKS, _MAX_BLOCKS = 2**16, 2**18
"""Of WebP and GIF: to pass over more of them takes seconds."""
_GIF_TRAILER, _GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x3B, 0x21, 0x2C, 0xF9


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A file that may be opened.

    ``open`` gives it unread; its size is to be looked at before it is loaded. ``orientation`` is
    EXIF's, 1 to 8. ``damage`` says what is wrong with it although it can be read, ``note`` what
    else is to be known.
    """

    open: Callable[[], ImageFile.ImageFile]
    orientation: int = 1
    damage: str | None = None
    note: str | None = None
    whole_png: png.PngFile | None = None


def sniff(data: bytes) -> str | None:
    """The format of an image file, None where it is none that is read."""
    if data.startswith(_JPEG):
        return "jpeg"
    found = next((kind for mark, kind in _MARKS if data.startswith(mark)), None)
    if found == "webp" and data[8:12] != b"WEBP":
        return None
    # Two letters alone are also the beginning of a text.
    if found == "bmp" and data[14:18] not in _BMP_HEADERS:
        return None
    return found or boxes.brand(data)


def source(data: bytes, kind: str, max_pixels: int) -> ImageSource:
    """Check a file of a format that `sniff` has told.

    Raises:
        UnreadableError: It is beyond the limits, of a kind that is not read, or not whole.
    """
    return _SOURCES[kind](data, max_pixels)


def jpeg_orientation(data: bytes) -> int:
    """The orientation in the EXIF data of a JPEG; 1 where it has none.

    Raises:
        UnreadableError: It has more segments before its pixels than `MAX_SEGMENTS`.
    """
    position, found = 2, None
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data):
            return found or 1
        mark, marker, length = struct.unpack_from(">BBH", data, position)
        if mark != 0xFF or marker == 0xDA or length < 2:  # noqa: PLR2004 (start of scan)
            return found or 1
        body = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and body.startswith(_EXIF):  # noqa: PLR2004 (APP1)
            found = found or tiff.exif_orientation(body[len(_EXIF) :])
        position += 2 + length
    raise corrupt(f"a JPEG of more than {MAX_SEGMENTS} segments before its pixels")


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Does not read EXIF, which says nothing about pixels and warns where it is malformed."""

    def _read_dpi_from_exif(self) -> None:
        return


def _jpeg(data: bytes, _: int) -> ImageSource:
    return ImageSource(lambda: _Jpeg(BytesIO(data)), jpeg_orientation(data))


def _png(data: bytes, _: int) -> ImageSource:
    found = png.read_png(data)
    bits = found.significant_bits
    return ImageSource(
        lambda: PngImagePlugin.PngImageFile(BytesIO(found.pixels)),
        tiff.exif_orientation(found.exif) if found.exif else 1,
        found.damage,
        None if bits is None else f"its sBIT chunk says {bits} significant bits",
        found,
    )


def _webp(data: bytes, max_pixels: int) -> ImageSource:
    # Pillow's decoder allocates the canvas when it is created.
    require_pixels(_webp_size(data), max_pixels)
    orientation = 1
    for name, body in _riff_chunks(data):
        if name == b"EXIF":
            orientation = tiff.exif_orientation(body.removeprefix(_EXIF))
    return ImageSource(lambda: WebPImagePlugin.WebPImageFile(BytesIO(data)), orientation)


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no VP8 chunk follows the RIFF header")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, position)
        yield name, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _bmp(data: bytes, max_pixels: int) -> ImageSource:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:  # noqa: PLR2004 (OS/2's, with short sides)
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = _BMP_PLAIN
    else:
        width, signed, _, bits, compression = struct.unpack_from("<IiHHI", data, 18)
        height = abs(signed)
    size = width, height
    require_pixels(size, max_pixels)
    # Pillow decodes runs in Python, and makes room for whatever they skip.
    if compression not in {_BMP_PLAIN, _BMP_BITFIELDS}:
        raise unsupported(f"BMP compression {compression} is not read: write without it", size)
    (offset,) = struct.unpack_from("<I", data, 10)
    expected = (width * bits + 31) // 32 * 4 * height
    if offset + expected > len(data) + 3:
        raise corrupt(f"its pixels take {expected} bytes, of which {len(data) - offset} are there")
    return ImageSource(lambda: BmpImagePlugin.BmpImageFile(BytesIO(data)))


def _gif(data: bytes, max_pixels: int) -> ImageSource:
    whole = _first_frame(data, max_pixels)
    return ImageSource(lambda: GifImagePlugin.GifImageFile(BytesIO(whole)))


def _first_frame(data: bytes, max_pixels: int) -> bytes:
    """A file of the first frame alone: comments are joined in quadratic time."""
    colours = 3 << (data[10] & 7) + 1 if data[10] & 128 else 0
    position = 13 + colours
    kept = [data[:position]]
    extensions = 0
    while position + 2 <= len(data) and data[position] == _GIF_EXTENSION:
        extensions += 1
        if extensions > _MAX_CHUNKS:
            raise corrupt(f"a GIF of more than {_MAX_CHUNKS} extensions before its first frame")
        start, is_control = position, data[position + 1] == _GIF_CONTROL
        position = _end_of_blocks(data, position + 2)
        if is_control:
            kept[1:] = [data[start:position]]
    if data[position : position + 1] != bytes([_GIF_IMAGE]):
        raise corrupt("a GIF without an image")
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, position + 1)
    canvas = struct.unpack_from("<HH", data, 6)
    require_pixels((max(canvas[0], left + width), max(canvas[1], top + height)), max_pixels)
    start, position = position, position + 10 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    position = _end_of_blocks(data, position + 1)
    return b"".join([*kept, data[start:position], bytes([_GIF_TRAILER])])


def _end_of_blocks(data: bytes, position: int) -> int:
    """Where blocks end that each say their length, the last of which has none."""
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or not data[position]:
            return min(position + 1, len(data))
        position += 1 + data[position]
    raise corrupt(f"a GIF of more than {_MAX_BLOCKS} blocks")


def _tiff(data: bytes, max_pixels: int) -> ImageSource:
    pixels, _, orientation = tiff.pixel_directory(data, max_pixels)
    return ImageSource(lambda: TiffImagePlugin.TiffImageFile(BytesIO(pixels)), orientation)


class _Avif(AvifImagePlugin.AvifImageFile):
    """Reads no EXIF, which can take memory without bound, and decodes in its own thread alone."""

    turned = 1

    def _open(self) -> None:
        from PIL import _avif  # noqa: PLC0415  (not in every Pillow)

        assert self.fp is not None
        self._decoder = _avif.AvifDecoder(self.fp.read(), "auto", 1)
        self._size, self.n_frames, self._mode, _, _, self.turned, _ = self._decoder.get_info()
        self.is_animated = self.n_frames > 1
        self.seek(0)


def _avif(data: bytes, max_pixels: int) -> ImageSource:
    if not AvifImagePlugin.SUPPORTED:
        raise unsupported("this Pillow reads no AVIF: install one that was built with libavif")
    checked = boxes.checked(data, max_pixels)
    with _Avif(BytesIO(checked)) as image:
        orientation = image.turned
    return ImageSource(lambda: _Avif(BytesIO(checked)), orientation)


def _heic(data: bytes, max_pixels: int) -> ImageSource:
    try:
        # An extra. The plugin proper would register itself with Pillow for the whole process.
        from pillow_heif.as_plugin import HeifImageFile  # noqa: PLC0415
    except ImportError:
        raise unsupported("HEIC is read with an extra: pip install 'nap-stream[heif]'") from None
    checked = boxes.checked(data, max_pixels)
    return ImageSource(lambda: HeifImageFile(BytesIO(checked)))  # type: ignore[no-untyped-call]


_SOURCES: Final[dict[str, Callable[[bytes, int], ImageSource]]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "bmp": _bmp,
    "gif": _gif,
    "tiff": _tiff,
    "avif": _avif,
    "heic": _heic,
}
