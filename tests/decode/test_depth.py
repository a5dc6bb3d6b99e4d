"""Samples of more than 8 bits: never black in silence."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.image_bytes import encoded, npy

RAMP = np.linspace(0, 4_095, 40 * 30).reshape(30, 40).astype(np.uint16)
"""12 bits."""
COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour type by channels; the last of 2 and of 4 is alpha."""


def decoded(data: bytes, bits: int | None = None) -> Picture | Refusal:
    settings = PreprocessingSettings.model_validate({"bits": bits})
    return decode_image(data, LimitSettings(), None, settings)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(samples: NDArray[Any], channels: int, significant: int | None = None) -> bytes:
    stacked = np.repeat(samples[..., None], channels, axis=2)
    if channels in {2, 4}:
        stacked[..., -1] = 65_535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stacked)
    height, width = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, COLOURS[channels], 0, 0, 0)
    bits = b"" if significant is None else _chunk(b"sBIT", bytes([significant] * channels))
    pixels = _chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + bits + pixels + _chunk(b"IEND", b"")


def tiff16(samples: NDArray[np.uint16], order: str, channels: int) -> bytes:
    """A TIFF of one strip, without compression; Pillow writes no 16-bit colour."""
    height, width = samples.shape
    body = np.repeat(samples[..., None], channels, axis=2).astype(f"{order}u2").tobytes()
    entries = {
        256: (3, 1, width),
        257: (3, 1, height),
        258: (3, channels, 16 if channels == 1 else 8),
        259: (3, 1, 1),
        262: (3, 1, 1 if channels == 1 else 2),
        273: (4, 1, 14),
        277: (3, 1, channels),
        278: (3, 1, height),
        279: (4, 1, len(body)),
    }
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (kind, count, value) in entries.items():
        packed = struct.pack(f"{order}{'H2x' if kind == 3 and count == 1 else 'I'}", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", 14 + len(body))
    return head + struct.pack(f"{order}3H", 16, 16, 16) + body + directory + bytes(4)


FILES = {
    "png": png16(RAMP, 1),
    "png, alpha": png16(RAMP, 2),
    "png, colour": png16(RAMP, 3),
    "png, colour and alpha": png16(RAMP, 4),
    "tiff": encoded(Image.fromarray(RAMP), "TIFF"),
    "tiff, LZW": encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "tiff, big-endian": tiff16(RAMP, ">", 1),
    "tiff, colour": tiff16(RAMP, "<", 3),
    "tiff, colour, big-endian": tiff16(RAMP, ">", 3),
}


@pytest.mark.parametrize("name", FILES)
def test_12_bits_in_16_are_named_and_shown_right_where_the_setting_says_so(name: str) -> None:
    dark = decoded(FILES[name])
    assert isinstance(dark, Picture), dark
    assert dark.warning is not None
    assert "looks like 12-bit data in 16 bits" in dark.warning
    assert "model.preprocessing.bits: 12" in dark.warning
    assert not dark.is_damaged
    np.testing.assert_array_equal(dark.pixels[0], RAMP >> 8)
    right = decoded(FILES[name], 12)
    if name == "png, alpha":
        assert isinstance(right, Refusal)
        assert right.status is Status.UNSUPPORTED
        return
    assert isinstance(right, Picture), right
    assert right.warning is None
    for channel in right.pixels:
        np.testing.assert_array_equal(channel, RAMP >> 4)


def test_bits_of_numpy_files() -> None:
    right, dark = decoded(npy(RAMP), 12), decoded(npy(RAMP))
    assert isinstance(right, Picture)
    assert isinstance(dark, Picture)
    np.testing.assert_array_equal(right.pixels[2], RAMP >> 4)
    assert dark.warning is not None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("factor", "guess"), [(16, None), (4, 14), (1, 12), (0.25, 10), (0.06, 8), (0, None)]
)
def test_guesses(channels: int, factor: float, guess: int | None) -> None:
    found = decoded(png16((RAMP * factor).astype(np.uint16), channels))
    assert isinstance(found, Picture)
    if guess is None and not (factor == 0 and channels == 2):
        assert found.warning is None
    elif guess is not None:
        assert found.warning is not None
        assert f"looks like {guess}-bit data" in found.warning


def test_what_sbit_says_is_said_with_it() -> None:
    found = decoded(png16(RAMP, 1, significant=12))
    assert isinstance(found, Picture)
    assert found.warning is not None
    assert found.warning.endswith("its sBIT chunk says 12 significant bits")
    full = decoded(png16(RAMP << 4, 1, significant=12))
    assert isinstance(full, Picture)
    assert full.warning is None


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_beyond_the_bits_are_cut_off_and_named(channels: int) -> None:
    found = decoded(png16(RAMP, channels), 10)
    assert isinstance(found, Picture)
    assert found.warning == "samples up to 4095 have more than model.preprocessing.bits = 10"
    np.testing.assert_array_equal(found.pixels[0], np.minimum(RAMP, 1_023) >> 2)


def test_images_of_8_bits_are_as_they_were() -> None:
    data = encoded(Image.fromarray((RAMP >> 4).astype(np.uint8)), "PNG")
    found = decoded(data, 12)
    assert isinstance(found, Picture)
    assert found.warning is None
    np.testing.assert_array_equal(found.pixels[0], RAMP >> 4)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused_not_clipped(dtype: type) -> None:
    found = decoded(encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF"))
    assert isinstance(found, Refusal)
    assert found.status is Status.UNSUPPORTED
    assert "write 8 or 16 bits" in found.error
