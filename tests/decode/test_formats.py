"""BMP, TIFF, GIF, AVIF and HEIC: read as Pillow reads them, within the limits."""

import builtins
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.image_bytes import deflated_zeros, encoded, heic, picture

LIMITS = LimitSettings()
SMALL = LimitSettings(max_image_pixels=13 * 9 - 1)
MIB = 2**20


def decoded(data: bytes, limits: LimitSettings = LIMITS, **keys: Any) -> Picture | Refusal:
    return decode_image(data, limits, None, PreprocessingSettings.model_validate(keys))


ENCODERS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "bmp": ("bmp", lambda image: encoded(image, "BMP")),
    "tiff": ("tiff", lambda image: encoded(image, "TIFF")),
    "tiff, LZW": ("tiff", lambda image: encoded(image, "TIFF", compression="tiff_lzw")),
    "tiff, deflate": ("tiff", lambda image: encoded(image, "TIFF", compression="tiff_deflate")),
    "tiff, PackBits": ("tiff", lambda image: encoded(image, "TIFF", compression="packbits")),
    "tiff, JPEG": ("tiff", lambda image: encoded(image, "TIFF", compression="jpeg", quality=95)),
    "gif": ("gif", lambda image: encoded(image.convert("P"), "GIF")),
    "avif": ("avif", lambda image: encoded(image, "AVIF", quality=95, speed=10)),
    "heic": ("heic", heic),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_pixels_of_each_format(name: str) -> None:
    kind, encode = ENCODERS[name]
    image = picture(64, 48).convert("P").convert("RGB") if kind == "gif" else picture(64, 48)
    found = decoded(encode(image))
    assert isinstance(found, Picture), found
    assert (found.width, found.height, found.format) == (64, 48, kind)
    assert (found.warning, found.pixels.stride(0)) == (None, 1)
    difference = np.abs(found.pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(image))
    assert difference.max() <= (12 if name in {"tiff, JPEG", "avif", "heic"} else 0)


@pytest.mark.parametrize("name", ENCODERS)
def test_too_many_pixels_are_not_decoded(name: str) -> None:
    kind, encode = ENCODERS[name]
    found = decoded(encode(picture()), SMALL)
    assert isinstance(found, Refusal)
    assert (found.status, found.format) == (Status.TOO_LARGE, kind)
    # HEVC codes blocks, of which the image is cut.
    assert (found.width, found.height) == ((64, 64) if kind == "heic" else (13, 9))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "GIF"])
def test_modes(mode: str, image_format: str) -> None:
    image = picture().convert(mode)
    data = encoded(image, image_format)
    found = decoded(data)
    assert isinstance(found, Picture), found
    with Image.open(BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(found.pixels.permute(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colours_of_tiff(mode: str) -> None:
    data = encoded(picture().convert("YCbCr" if mode == "YCbCr" else "CMYK"), "TIFF")
    found = decoded(data)
    assert isinstance(found, Picture), found
    with Image.open(BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(found.pixels.permute(1, 2, 0), expected)


@pytest.mark.parametrize("image_format", ["GIF", "TIFF"])
def test_the_first_of_several(image_format: str) -> None:
    more = {"save_all": True, "append_images": [picture(seed=1), picture(seed=2)]}
    first, alone = decoded(encoded(picture(), image_format, **more)), picture()
    assert isinstance(first, Picture)
    if image_format == "TIFF":
        np.testing.assert_array_equal(first.pixels.permute(1, 2, 0), np.asarray(alone))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_orientation(orientation: int, image_format: str, order: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(picture(40, 24), image_format, exif=exif, **options)
    with Image.open(BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    found = decoded(data, exif_orientation="apply", channel_order=order)
    assert isinstance(found, Picture), found
    assert (found.width, found.height) == (40, 24)
    assert found.pixels.stride(0) == 1
    turned = found.pixels.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(turned[..., ::-1] if order == "bgr" else turned, expected)
    as_it_is = decoded(data)
    assert isinstance(as_it_is, Picture)
    assert as_it_is.pixels.shape == (3, 24, 40)


def test_a_jpeg_on_its_side_is_scaled_as_far_as_its_sides_allow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(256, 128), "JPEG", exif=exif)
    settings = PreprocessingSettings(exif_orientation="apply")
    found = decode_image(data, LIMITS, (128, 64), settings)
    assert isinstance(found, Picture)
    assert found.pixels.shape == (3, 128, 64)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    ],
    ids=range(6),
)
def test_an_orientation_that_is_none_turns_nothing(exif: bytes) -> None:
    data = encoded(picture(40, 24), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    found = decoded(data[:2] + segment + data[2:], exif_orientation="apply")
    assert isinstance(found, Picture)
    assert found.pixels.shape == (3, 24, 40)


def test_without_its_extra_heic_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(picture())
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pillow_heif"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    found = decoded(data)
    assert isinstance(found, Refusal)
    assert (found.status, found.format) == (Status.UNSUPPORTED, "heic")
    assert "pip install 'nap-stream[heif]'" in found.error


# Hostile files. Each is refused, or read, in bounded memory.


def _bmp(width: int, height: int, bits: int = 24, compression: int = 0, body: bytes = b"") -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body


Entries = dict[int, tuple[int, int, int]]


def _tiff(changed: Entries, body: bytes = bytes(3 * 16 * 16), count: int | None = None) -> bytes:
    entries: Entries = {
        256: (3, 1, 16),
        257: (3, 1, 16),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (3, 1, 16),
        279: (4, 1, 256),
    } | changed
    directory = struct.pack("<H", len(entries) if count is None else count)
    for tag, (kind, values, value) in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, kind, values, value)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


def _gif(width: int, height: int, frame: tuple[int, int, int, int], extra: bytes = b"") -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"\x2c" + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x44\x01\0"
    return head + extra + image + b"\x3b"


def _blocks(count: int) -> bytes:
    return b"\x21\xfe" + (b"\xff" + b"a" * 255) * count + b"\0"


def _commented_gif() -> bytes:
    data = encoded(picture().convert("L"), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:start] + _blocks(70_000) + data[start:]


def _patched(data: bytes, name: bytes, place: int, value: bytes) -> bytes:
    at = data.index(name) + place
    return data[:at] + value + data[at + len(value) :]


def _avif() -> bytes:
    return encoded(picture(64, 48), "AVIF", speed=10)


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


FTYP_AVIF = _box(b"ftyp", b"avif\0\0\0\0avifmif1")
FTYP_HEIC = _box(b"ftyp", b"heic\0\0\0\0heicmif1")


def _meta(*boxes: bytes) -> bytes:
    return _box(b"meta", bytes(4) + b"".join(boxes))


def _big_avif() -> bytes:
    """Frames of 8,192 x 8,192 pixels in a file that declares 16 x 16: made once, 1,215 bytes."""
    packed = (Path(__file__).parent / "large_frame.avif").read_bytes()
    return _patched(packed, b"ispe", 8, struct.pack(">II", 16, 16))


def _items(count: int) -> bytes:
    return _box(b"iloc", b"\0\0\0\0\x44\0" + struct.pack(">H", count))


HOSTILE: dict[str, tuple[Callable[[], bytes], set[Status]]] = {
    "bmp of 4e18 pixels": (lambda: _bmp(2**31 - 1, 2**31 - 1), {Status.TOO_LARGE}),
    "bmp upside down, too large": (lambda: _bmp(2**16, -(2**16)), {Status.TOO_LARGE}),
    "bmp of the least height": (lambda: _bmp(1, -(2**31)), {Status.TOO_LARGE}),
    "bmp without pixels": (lambda: _bmp(8_000, 8_000), {Status.CORRUPT}),
    "bmp of no size": (lambda: _bmp(0, 0), {Status.CORRUPT}),
    "bmp of negative width": (lambda: _bmp(-5, 5), {Status.TOO_LARGE, Status.CORRUPT}),
    "bmp of runs that skip": (
        lambda: _bmp(64_000_000, 1, 8, 1, b"\0\2\0\xff" * 1_000),
        {Status.UNSUPPORTED},
    ),
    "bmp of JPEG": (lambda: _bmp(8, 8, 24, 4, encoded(picture())), {Status.UNSUPPORTED}),
    "bmp of 7 bits": (lambda: _bmp(8, 8, 7, 0, bytes(999)), {Status.CORRUPT}),
    "bmp that points behind itself": (
        lambda: _patched(_bmp(8, 8, 24, 0, bytes(192)), b"BM", 10, b"\xff\xff\xff\xff"),
        {Status.CORRUPT},
    ),
    "bmp of a long palette": (
        lambda: _patched(_bmp(8, 8, 8, 0, bytes(64)), b"BM", 46, b"\xff\xff\xff\x7f"),
        {Status.CORRUPT},
    ),
    "bmp cut off in its header": (lambda: _bmp(8, 8)[:20], {Status.CORRUPT}),
    "tiff of 4e9 pixels": (
        lambda: _tiff({256: (3, 1, 65_535), 257: (3, 1, 65_535)}),
        {Status.TOO_LARGE},
    ),
    "tiff of 1.8e19 pixels": (
        lambda: _tiff({256: (4, 1, 2**32 - 1), 257: (4, 1, 2**32 - 1)}),
        {Status.TOO_LARGE},
    ),
    "tiff of huge tiles": (
        lambda: _tiff({322: (4, 1, 2**31), 323: (4, 1, 2**31), 324: (4, 1, 8), 325: (4, 1, 8)}),
        {Status.CORRUPT},
    ),
    "tiff, deflate, of huge tiles": (
        lambda: _tiff(
            {
                259: (3, 1, 8),
                322: (4, 1, 60_000),
                323: (4, 1, 60_000),
                324: (4, 1, 8),
                325: (4, 1, 8),
            }
        ),
        {Status.CORRUPT},
    ),
    "tiff whose tag has 4e9 values": (lambda: _tiff({273: (4, 2**32 - 1, 8)}), {Status.CORRUPT}),
    "tiff whose tag is as long as the file": (
        lambda: _tiff({273: (4, 2**16, 8)}, bytes(2**18)),
        {Status.OK},
    ),
    "tiff of an unknown type": (lambda: _tiff({273: (99, 1, 8)}), {Status.CORRUPT}),
    "tiff of 65,535 entries": (lambda: _tiff({}, count=65_535), {Status.CORRUPT}),
    "tiff that points into nothing": (
        lambda: b"II*\0\xff\xff\xff\xff" + bytes(9),
        {Status.CORRUPT},
    ),
    "tiff of four bytes": (lambda: b"MM\0*", {Status.CORRUPT}),
    "tiff without a size": (lambda: _tiff({256: (3, 0, 0)}), {Status.CORRUPT}),
    "tiff of 60,000 samples a pixel": (lambda: _tiff({277: (3, 1, 60_000)}), {Status.CORRUPT}),
    "tiff of LZMA": (lambda: _tiff({259: (3, 1, 34_925)}), {Status.UNSUPPORTED}),
    "tiff of Zstandard": (lambda: _tiff({259: (3, 1, 50_000)}), {Status.UNSUPPORTED}),
    "tiff of WebP": (lambda: _tiff({259: (3, 1, 50_001)}), {Status.UNSUPPORTED}),
    "tiff of old JPEG": (lambda: _tiff({259: (3, 1, 6)}), {Status.UNSUPPORTED}),
    "BigTIFF": (lambda: b"II+\0\x08\0\0\0" + bytes(99), {Status.UNSUPPORTED}),
    "tiff of floating point": (
        lambda: _tiff({258: (3, 1, 64), 339: (3, 1, 3)}, bytes(2_048)),
        {Status.CORRUPT, Status.UNSUPPORTED},
    ),
    "tiff of a deflate bomb": (
        lambda: _tiff(
            {259: (3, 1, 8), 279: (4, 1, 2**20)},
            deflated_zeros(128).ljust(2**20, b"\0"),
        ),
        {Status.OK},
    ),
    "tiff of pages without end": (lambda: _tiff({})[:-4] + struct.pack("<I", 8 + 768), {Status.OK}),
    "tiff whose EXIF is itself": (lambda: _tiff({34_665: (4, 1, 8 + 768)}), {Status.OK}),
    "tiff of rows without end": (
        lambda: _tiff({278: (4, 1, 2**32 - 1)}),
        {Status.OK, Status.CORRUPT},
    ),
    "gif of 4e9 pixels": (lambda: _gif(65_535, 65_535, (0, 0, 1, 1)), {Status.TOO_LARGE}),
    "gif of a frame beyond its canvas": (
        lambda: _gif(2, 2, (60_000, 60_000, 5_000, 5_000)),
        {Status.TOO_LARGE},
    ),
    "gif of a frame of no size": (lambda: _gif(2, 2, (0, 0, 0, 0)), {Status.OK, Status.CORRUPT}),
    "gif of a long comment": (_commented_gif, {Status.OK}),
    "gif of comments alone": (lambda: _gif(2, 2, (0, 0, 2, 2), _blocks(9))[:-20], {Status.CORRUPT}),
    "gif cut off": (lambda: b"GIF89a\x01", {Status.CORRUPT}),
    "avif of 64 x 4e9 pixels": (
        lambda: _patched(_avif(), b"ispe", 12, b"\xff\xff\xff\xff"),
        {Status.TOO_LARGE},
    ),
    "avif of frames larger than it says": (_big_avif, {Status.TOO_LARGE}),
    "avif that refers to a file": (
        lambda: _patched(_avif(), b"iloc", 14, b"\0\1"),
        {Status.UNSUPPORTED, Status.CORRUPT},
    ),
    "avif of items without end": (lambda: FTYP_AVIF + _meta(_items(65_535)), {Status.CORRUPT}),
    "avif of boxes in boxes": (
        lambda: FTYP_AVIF + _box(b"meta", bytes(4) + b"\0\0\0\0iprp" * 3_000),
        {Status.CORRUPT},
    ),
    "avif of many boxes": (lambda: FTYP_AVIF + _box(b"free", b"") * 99_999, {Status.CORRUPT}),
    "avif of a box of 2**64 bytes": (
        lambda: FTYP_AVIF + b"\0\0\0\1meta" + b"\xff" * 8,
        {Status.CORRUPT},
    ),
    "avif of a sequence alone": (
        lambda: FTYP_AVIF + _box(b"moov", bytes(99)),
        {Status.UNSUPPORTED},
    ),
    "avif without items": (lambda: FTYP_AVIF + _meta(), {Status.CORRUPT}),
    "heic of 4e9 x 48 pixels": (
        lambda: _patched(heic(picture(64, 48)), b"ispe", 8, b"\xff\xff\xff\xff"),
        {Status.TOO_LARGE},
    ),
    "heic of frames larger than it says": (
        lambda: _patched(heic(picture(640, 480)), b"ispe", 8, struct.pack(">II", 16, 16)),
        {Status.CORRUPT, Status.OK},
    ),
    "heic without items": (lambda: FTYP_HEIC + _meta(), {Status.CORRUPT}),
    "heic of noise": (lambda: FTYP_HEIC + bytes(range(256)) * 9, {Status.CORRUPT}),
    "heic of nothing": (lambda: FTYP_HEIC, {Status.UNSUPPORTED, Status.CORRUPT}),
}


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _inflating_png(*first: bytes) -> bytes:
    """Of 64 x 64 black pixels, and a GiB of zeros behind them."""
    size = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = _png_chunk(b"IDAT", deflated_zeros(1_024))
    return b"".join((b"\x89PNG\r\n\x1a\n", *first, size, pixels, _png_chunk(b"IEND", b"")))


MANY = 2 * MIB
SMALL_PNG = b"\x89PNG\r\n\x1a\n" + _png_chunk(
    b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
)
HUGE_PNG = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
LONG: dict[str, Callable[[], bytes]] = {
    "png of empty chunks": lambda: (
        SMALL_PNG + struct.pack(">I4sI", 0, b"IDAT", 0x35AF061E) * (MANY // 3)
    ),
    "png of two sizes": lambda: _inflating_png(_png_chunk(b"IHDR", HUGE_PNG)),
    "png of a palette before its size": lambda: _inflating_png(
        _png_chunk(b"PLTE", HUGE_PNG + bytes(2))
    ),
    "png of empty texts": lambda: SMALL_PNG + struct.pack(">I4sI", 0, b"tEXt", 0) * (MANY // 3),
    "jpeg of empty comments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * MANY,
    "jpeg of EXIF": lambda: b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * (MANY // 2),
    "webp of empty chunks": lambda: (
        b"RIFF\0\0\0\1WEBPVP8X" + struct.pack("<IIHBHB", 10, 0, 7, 0, 7, 0) + b"ABCD\0\0\0\0" * MANY
    ),
    "gif of short blocks": lambda: _gif(2, 2, (0, 0, 2, 2), b"\x21\xfe" + b"\1a" * (4 * MANY)),
    "gif of extensions": lambda: _gif(2, 2, (0, 0, 2, 2), b"\x21\xfe\0" * (3 * MANY)),
    "tiff of strips": lambda: _tiff(
        {256: (4, 1, 500), 257: (4, 1, 120_000), 273: (4, 120_000, 8), 278: (3, 1, 1)}, bytes(MIB)
    ),
    "avif of items in parts": lambda: (
        FTYP_AVIF
        + _meta(
            _box(
                b"iloc",
                b"\0\0\0\0\x44\0"
                + struct.pack(">H", 1_000)
                + (struct.pack(">HHH", 1, 0, 4_000) + bytes(32_000)) * 500,
            )
        )
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_files_that_would_take_long_are_refused(name: str) -> None:
    data = LONG[name]()
    started = time.process_time()
    found = decoded(data, exif_orientation="apply")
    assert isinstance(found, Refusal)
    assert found.status is Status.CORRUPT
    assert time.process_time() - started < 10


def status(found: Picture | Refusal) -> Status:
    return found.status if isinstance(found, Refusal) else Status.OK


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_hostile_files(name: str, orientation: str) -> None:
    make, expected = HOSTILE[name]
    found = decoded(make(), exif_orientation=orientation)
    assert status(found) in expected, found
    if isinstance(found, Refusal):
        assert found.error.isprintable()
        assert len(found.error) < 500


BOUND = 64 * MIB
"""What a process may take for any of them; each was seen to take less than 3 MiB."""
CHILD = f"""
import resource, sys
from tests.decode.test_formats import HOSTILE, decoded
files = {{name: make() for name, (make, _) in HOSTILE.items()}}
decoded(next(iter(files.values())))
grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = grown()
for name, data in files.items():
    decoded(data, exif_orientation="apply")
    if grown() - before > {BOUND}:
        sys.exit(name)
print(grown() - before)
"""


@pytest.mark.slow
def test_no_hostile_file_takes_memory_without_bound() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= BOUND
