"""One image: JPEG, PNG or WebP, told by its first bytes, to RGB pixels.

Images are read as torchvision's dataset loader reads the ones that models are trained on:
converted to RGB, alpha and palette transparency dropped, EXIF orientation ignored, the first
frame of an animation. One thing differs: 16-bit greyscale is scaled to 8 bits, not clipped.
"""

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK_OVERHEAD: Final = 12
_PNG_PIXEL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ERROR_LENGTH: Final = 300


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: ``pixels`` are RGB, uint8, shape (3, height, width)."""

    pixels: torch.Tensor
    width: int
    height: int
    format: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why bytes are no picture; the size and format where the bytes said them."""

    status: Status
    error: str
    width: int | None = None
    height: int | None = None
    format: str | None = None


MAX_JPEG_SCANS = 100
"""Each scan of a progressive file costs the time of a whole image; encoders make about ten."""
_START_OF_SCAN = b"\xff\xda"


def decode_image(data: bytes | None, limits: LimitSettings) -> Picture | Refusal:
    """Decode one image file; None stands for a missing one. Never raises for what the bytes hold.

    Nothing is decoded of more bytes than ``limits`` allow, nor of a file that declares more pixels.
    """
    if data is None:
        return Refusal(Status.TOMBSTONE, "the value is null")
    if not data:
        return Refusal(Status.EMPTY, "the value has no bytes")
    kind = _sniff(data)
    if len(data) > limits.max_image_bytes:
        return Refusal(
            Status.TOO_LARGE,
            f"{len(data)} bytes, more than limits.max_image_bytes = {limits.max_image_bytes}",
            format=kind,
        )
    if kind is None:
        return Refusal(
            Status.UNSUPPORTED, f"not a JPEG, PNG or WebP image: starts with {data[:8].hex(' ')}"
        )
    if kind == "jpeg" and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        return Refusal(Status.TOO_LARGE, f"a JPEG of more than {MAX_JPEG_SCANS} scans", format=kind)
    return _decode(data, kind, limits.max_image_pixels)


def describe(error: BaseException) -> str:
    """Give an error's type and text as one printable line of bounded length."""
    text = str(error).encode("unicode_escape").decode("ascii")
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH]


def _sniff(data: bytes) -> str | None:
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(_PNG):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def _decode(data: bytes, kind: str, max_pixels: int) -> Picture | Refusal:
    size: tuple[int, int] | None = None
    try:
        size = _webp_size(data) if kind == "webp" else None
        if size is None or size[0] * size[1] <= max_pixels:
            with _open(data, kind) as image:
                size = image.size
                if size[0] * size[1] <= max_pixels:
                    return Picture(_rgb(image), *size, kind)
    except MemoryError as error:
        problem = Status.TOO_LARGE, f"there is not the memory to decode it ({describe(error)})"
    # Decoders raise whatever hostile bytes make them raise.
    except Exception as error:  # noqa: BLE001
        problem = Status.CORRUPT, f"it cannot be decoded ({describe(error)})"
    else:
        problem = (
            Status.TOO_LARGE,
            f"{size[0]} x {size[1]} pixels, more than limits.max_image_pixels = {max_pixels}",
        )
    width, height = size if size is not None else (None, None)
    return Refusal(*problem, width, height, kind)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Does not read EXIF, which says nothing about pixels and warns where it is malformed."""

    def _read_dpi_from_exif(self) -> None:
        return


def _open(data: bytes, kind: str) -> ImageFile.ImageFile:
    # The plugin of the format itself: Image.open would try others, and its limit on pixels is
    # a global of the process that warns.
    if kind == "jpeg":
        return _Jpeg(BytesIO(data))
    if kind == "png":
        return PngImagePlugin.PngImageFile(BytesIO(_pixel_chunks(data)))
    return WebPImagePlugin.WebPImageFile(BytesIO(data))


def _pixel_chunks(png: bytes) -> bytes:
    """Leave the chunks that hold pixels: the others warn, inflate, or set transparency."""
    kept = [_PNG]
    position = len(_PNG)
    while position + _PNG_CHUNK_OVERHEAD <= len(png):
        length, name = struct.unpack_from(">I4s", png, position)
        end = position + _PNG_CHUNK_OVERHEAD + length
        if name in _PNG_PIXEL_CHUNKS or end > len(png):
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the declared size: Pillow's decoder allocates the canvas when it is created."""
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


def _rgb(image: Image.Image) -> torch.Tensor:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        # Pillow's own conversion clips at 255. The high byte is what it takes of 16-bit colour.
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
