"""Images that are decoded although they are damaged: what their decoders say goes with them."""

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from nap_stream.decode.image import decode_image
from nap_stream.decode.message import decode_message
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.records import Message, Status, TopicPartition
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import encoded

KEEP, REFUSE = LimitSettings(), LimitSettings(damaged="refuse")
NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
PHOTO = Image.fromarray(NOISE).resize((320, 240), Image.Resampling.BICUBIC)
PLAIN = encoded(PHOTO, "JPEG", quality=85)
RESTARTS = encoded(PHOTO, "JPEG", quality=85, restart_marker_blocks=20)
CUT = "Corrupt JPEG data: premature end of data segment"


def middle(data: bytes) -> int:
    return (data.index(b"\xff\xda") + len(data)) // 2


def _lost(data: bytes, count: int = 1_400) -> bytes:
    return data[: middle(data)] + data[middle(data) + count :]


def _overwritten(data: bytes, by: bytes) -> bytes:
    return data[: middle(data)] + by + data[middle(data) + len(by) :]


def _restarts(data: bytes) -> list[int]:
    start = data.index(b"\xff\xda")
    return [
        place
        for place in range(start, len(data) - 1)
        if data[place] == 0xFF and 0xD0 <= data[place + 1] <= 0xD7
    ]


def _wrong_restart(data: bytes) -> bytes:
    place = _restarts(data)[3] + 1
    return data[:place] + bytes([0xD0 + (data[place] - 0xD0 + 3) % 8]) + data[place + 1 :]


def _without_a_restart(data: bytes) -> bytes:
    place = _restarts(data)[3]
    return data[:place] + data[place + 2 :]


def _without_an_interval(data: bytes) -> bytes:
    first, second = _restarts(data)[3:5]
    return data[:first] + data[second:]


GENERATOR = np.random.default_rng(1)
GARBAGE = GENERATOR.integers(0, 255, 1_400).astype(np.uint8).tobytes()
DAMAGED: dict[str, bytes] = {
    "half a frame": PLAIN[: middle(PLAIN)] + b"\xff\xd9",
    "a lost packet": _lost(PLAIN),
    "zeros": _overwritten(PLAIN, bytes(1_400)),
    "garbage": _overwritten(PLAIN, GARBAGE),
    "an end in the middle": PLAIN[: middle(PLAIN)] + b"\xff\xd9" + PLAIN[middle(PLAIN) :],
    "bytes before the end": PLAIN[:-2] + b"abcdef" + PLAIN[-2:],
    "half of it twice": PLAIN[: middle(PLAIN)] + PLAIN[PLAIN.index(b"\xff\xda") + 14 :],
    "a wrong restart marker": _wrong_restart(RESTARTS),
    "no restart marker": _without_a_restart(RESTARTS),
    "a lost interval": _without_an_interval(RESTARTS),
    "a lost packet between restarts": _lost(RESTARTS),
    "progressive, a lost packet": _lost(encoded(PHOTO, "JPEG", progressive=True)),
    "grey, a lost packet": _lost(encoded(PHOTO.convert("L"), "JPEG")),
    "CMYK, a lost packet": _lost(encoded(PHOTO.convert("CMYK"), "JPEG")),
    "CMYK, half a frame": (cmyk := encoded(PHOTO.convert("CMYK"), "JPEG"))[: middle(cmyk)]
    + b"\xff\xd9",
    "junk between segments": PLAIN[: (at := PLAIN.index(b"\xff\xdb"))] + b"junk" + PLAIN[at:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_libjpeg_says_of_a_damaged_jpeg_goes_with_it(name: str) -> None:
    found = decode_image(DAMAGED[name], KEEP)
    assert isinstance(found, Picture), found
    assert found.warning is not None
    assert found.warning.startswith("Corrupt JPEG data")
    assert found.is_damaged
    assert (found.width, found.height) == (320, 240)
    refused = decode_image(DAMAGED[name], REFUSE)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.width, refused.format) == (Status.CORRUPT, 320, "jpeg")
    assert found.warning in refused.error


def test_the_words_are_libjpegs_own() -> None:
    half = decode_image(DAMAGED["half a frame"], KEEP)
    wrong = decode_image(DAMAGED["a wrong restart marker"], KEEP)
    assert isinstance(half, Picture)
    assert isinstance(wrong, Picture)
    assert half.warning == CUT
    assert wrong.warning == "Corrupt JPEG data: found marker 0xd6 instead of RST3"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-2],
        PLAIN[: middle(PLAIN)],
        _overwritten(PLAIN, b"\xff" * 1_400),
        encoded(PHOTO, "JPEG", progressive=True)[:-2],
        PLAIN[: PLAIN.index(b"\xff\xda")],
    ],
    ids=["no end", "cut off", "markers", "progressive, no end", "no scan"],
)
def test_a_jpeg_that_is_cut_off_is_corrupt_either_way(data: bytes) -> None:
    for limits in (KEEP, REFUSE):
        found = decode_image(data, limits)
        assert isinstance(found, Refusal)
        assert found.status is Status.CORRUPT


@pytest.mark.parametrize(
    "data",
    [PLAIN, RESTARTS, PLAIN + b"behind the end", PLAIN + bytes(100), PLAIN + PLAIN, cmyk],
    ids=["plain", "restarts", "text behind", "zeros behind", "two", "CMYK"],
)
def test_of_a_whole_jpeg_nothing_is_said(data: bytes) -> None:
    found = decode_image(data, REFUSE)
    assert isinstance(found, Picture)
    assert (found.warning, found.is_damaged) == (None, False)


def _chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    own = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", own)


def _png(rows: Callable[[bytes], bytes], *, interlaced: int = 0, end: bool = True) -> bytes:
    raw = b"".join(b"\0" + row.tobytes() for row in NOISE)
    header = struct.pack(">IIBBBBB", 128, 96, 8, 2, 0, 0, interlaced)
    last = _chunk(b"IEND", b"") if end else b""
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + rows(raw) + last


def _deflated(raw: bytes) -> bytes:
    return _chunk(b"IDAT", zlib.compress(raw))


SIDES = ((16, 12), (16, 12), (32, 12), (32, 24), (64, 24), (64, 48), (128, 48))
"""Columns and rows of the passes of an interlaced image of 128 x 96 pixels."""
PASSES = b"".join(rows * (b"\0" + columns * b"\x80\x40\x20") for columns, rows in SIDES)
PNGS = {
    "a wrong checksum": _png(lambda raw: _chunk(b"IDAT", zlib.compress(raw), 1)),
    "half of the rows": _png(lambda raw: _deflated(raw[: len(raw) // 2])),
    "all but one row": _png(lambda raw: _deflated(raw[:-385])),
    "one pass too few": _png(lambda _: _deflated(PASSES[: -48 * 385]), interlaced=1),
    "half of the last pass": _png(lambda _: _deflated(PASSES[: -24 * 385]), interlaced=1),
    "no end": _png(_deflated, end=False),
}


@pytest.mark.parametrize("name", PNGS)
def test_what_is_wrong_with_a_png_goes_with_it(name: str) -> None:
    found = decode_image(PNGS[name], KEEP)
    assert isinstance(found, Picture), found
    assert found.is_damaged
    assert found.warning is not None
    expected = {"a wrong checksum": "checksum", "no end": "IEND"}.get(name, "the pixels end after")
    assert expected in found.warning
    assert isinstance(decode_image(PNGS[name], REFUSE), Refusal)


@pytest.mark.parametrize(
    "rows",
    [
        _deflated,
        lambda raw: _deflated(raw[: -2 * 385] + bytes(2 * 385)),
        lambda raw: (
            _chunk(b"IDAT", zlib.compress(raw)[:900]) + _chunk(b"IDAT", zlib.compress(raw)[900:])
        ),
        lambda raw: _deflated(raw + raw),
    ],
    ids=["whole", "black at its end", "in two chunks", "too much"],
)
def test_of_a_whole_png_nothing_is_said(rows: Callable[[bytes], bytes]) -> None:
    found = decode_image(_png(rows) + b"behind the end", REFUSE)
    assert isinstance(found, Picture), found
    assert found.warning is None


def test_of_a_whole_interlaced_png_nothing_is_said() -> None:
    found = decode_image(_png(lambda _: _deflated(PASSES), interlaced=1), REFUSE)
    assert isinstance(found, Picture), found
    assert found.pixels[:, 95, 127].tolist() == [0x80, 0x40, 0x20]


def test_a_png_without_any_row_is_corrupt() -> None:
    found = decode_image(_png(lambda _: _deflated(b"")), KEEP)
    assert isinstance(found, Refusal)
    assert found.status is Status.CORRUPT


def _others() -> Iterator[tuple[str, bytes]]:
    for kind, options in (
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {}),
        ("AVIF", {"speed": 10}),
    ):
        data = encoded(PHOTO, kind, **options)
        name = f"{kind} {options.get('compression', '')}"
        yield f"{name} half", data[: len(data) // 2]
        yield f"{name} without ten bytes", data[:-10]
        yield f"{name} a lost packet", _without(data, len(data) // 2, 1_400)


def _without(data: bytes, place: int, count: int) -> bytes:
    return data[:place] + data[place + count :]


@pytest.mark.parametrize(
    ("name", "data"), (cases := list(_others())), ids=[case[0] for case in cases]
)
def test_other_files_that_are_cut_off_are_corrupt(name: str, data: bytes) -> None:
    found = decode_image(data, KEEP)
    assert isinstance(found, Refusal), name
    assert found.status is Status.CORRUPT


def test_the_warning_stands_in_the_row() -> None:
    message = Message(TopicPartition("t", 0), 0, 0, None, DAMAGED["half a frame"])
    rows = decode_message(message, KEEP, kept_headers=(), ingest_time_ms=0)
    assert rows.columns["decode_warning"] == [CUT]
    assert rows.columns["status"] == [Status.OK]
    assert rows.columns["source_uri"] == [None]
    refused = decode_message(message, REFUSE, kept_headers=(), ingest_time_ms=0)
    assert refused.columns["status"] == [Status.CORRUPT]
    assert refused.columns["decode_warning"] == [None]
    assert refused.failed[0].payload == message.value
