import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import deflated_zeros, encoded, jpeg, picture

LIMITS = LimitSettings()


def decoded(data: bytes) -> Picture:
    found = decode_image(data, LIMITS)
    assert isinstance(found, Picture), found
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.shape == (3, found.height, found.width)
    return found


def refused(data: bytes | None, limits: LimitSettings = LIMITS) -> Refusal:
    found = decode_image(data, limits)
    assert isinstance(found, Refusal)
    return found


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_the_pixels_of_each_format(image_format: str, options: dict[str, int]) -> None:
    image = picture()
    found = decoded(encoded(image, image_format, **options))
    assert (found.width, found.height, found.format) == (13, 9, image_format.lower())
    difference = np.abs(found.pixels.numpy().astype(int) - rgb(image).astype(int))
    assert difference.max() <= (3 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_greyscale_has_three_equal_channels(image_format: str) -> None:
    grey = picture().convert("L")
    found = decoded(encoded(grey, image_format)).pixels
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_png_modes(mode: str) -> None:
    image = picture().convert(mode)
    np.testing.assert_array_equal(decoded(encoded(image, "PNG")).pixels, rgb(image))


def test_cmyk_jpeg() -> None:
    found = decoded(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    # Full cyan ink is no red, all green and blue.
    assert found.pixels[:, 4, 4].tolist() == pytest.approx([0, 255, 255], abs=3)


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    found = decoded(encoded(Image.fromarray(wide), "PNG"))
    assert found.pixels[0, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_16_bit_colour_is_scaled() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1200, 0x3400, 0x5600)
    found = decoded(png(2, 1, 16, 2, chunk(b"IDAT", zlib.compress(row))))
    assert found.pixels[:, 0].tolist() == [[0, 0x12], [0x80, 0x34], [0xFF, 0x56]]


def test_alpha_is_dropped_as_in_training() -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(decoded(encoded(image, "PNG")).pixels, rgb(picture()))
    lossless = encoded(image, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decoded(lossless).pixels, rgb(picture()))


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_palette_transparency_is_dropped_without_a_warning(transparency: int | bytes) -> None:
    image = picture().convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoded(encoded(image, "PNG", transparency=transparency))
    np.testing.assert_array_equal(found.pixels, rgb(image))


def test_exif_orientation_is_ignored_as_in_training() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = encoded(picture(), "JPEG"), encoded(picture(), "JPEG", exif=exif)
    assert torch.equal(decoded(plain).pixels, decoded(turned).pixels)


def test_the_first_frame_of_an_animation() -> None:
    frames = {"save_all": True, "append_images": [picture(seed=1)], "duration": 10}
    for data in (
        encoded(picture(), "PNG", **frames),
        encoded(picture(), "WEBP", lossless=True, **frames),
    ):
        np.testing.assert_array_equal(decoded(data).pixels, rgb(picture()))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x1a\x01" * 9]
)
def test_malformed_exif_is_no_matter_and_warns_nobody(exif: bytes) -> None:
    data = jpeg()
    # Without the JFIF segment's resolution, Pillow would look for it in EXIF.
    assert data[2:4] == b"\xff\xe0"
    body = data[4 + struct.unpack(">H", data[4:6])[0] :]
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoded(b"\xff\xd8" + segment + body)
    assert torch.equal(found.pixels, decoded(data).pixels)


def test_chunks_beside_the_pixels_are_not_read() -> None:
    bomb = chunk(b"zTXt", b"comment\0\0" + deflated_zeros(256))
    twice = chunk(b"acTL", struct.pack(">II", 0, 0)) * 2
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x07\x08\x09"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decoded(png(1, 1, 8, 2, bomb, twice, pixels))
    assert found.pixels.flatten().tolist() == [7, 8, 9]


def test_a_tombstone_and_no_bytes() -> None:
    assert refused(None).status is Status.TOMBSTONE
    assert refused(b"").status is Status.EMPTY


@pytest.mark.parametrize(
    "data", [b"hello, world", b"GIF88a" + bytes(20), b"\xff\xd8", b"RIFF1234WAVE"]
)
def test_what_is_no_image(data: bytes) -> None:
    found = refused(data)
    assert found.status is Status.UNSUPPORTED
    assert data[:2].hex(" ") in found.error
    assert found.format is None


def test_too_many_bytes_are_not_decoded() -> None:
    found = refused(jpeg(), LimitSettings(max_image_bytes=len(jpeg()) - 1))
    assert (found.status, found.format) == (Status.TOO_LARGE, "jpeg")
    assert isinstance(decode_image(jpeg(), LimitSettings(max_image_bytes=len(jpeg()))), Picture)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_too_many_pixels_are_not_decoded(image_format: str) -> None:
    data = encoded(picture(), image_format)
    found = refused(data, LimitSettings(max_image_pixels=13 * 9 - 1))
    assert (found.status, found.width, found.height) == (Status.TOO_LARGE, 13, 9)
    assert isinstance(decode_image(data, LimitSettings(max_image_pixels=13 * 9)), Picture)


def test_a_huge_declared_size_is_refused_before_decoding() -> None:
    pixels = chunk(b"IDAT", zlib.compress(b"\0"))
    found = refused(png(100_000, 100_000, 8, 2, pixels))
    assert (found.status, found.width) == (Status.TOO_LARGE, 100_000)
    assert "limits.max_image_pixels" in found.error


@pytest.mark.parametrize(
    "body",
    [
        b"VP8X" + struct.pack("<IIHBHB", 10, 0, 0xFFFF, 0xFF, 0xFFFE, 0),
        b"VP8L" + struct.pack("<IBI", 10, 0x2F, 0x0FFFFFFF),
        b"VP8 " + struct.pack("<I6xHH", 10, 0x3FFF, 0x3FFF),
    ],
)
def test_a_huge_declared_webp_size_is_refused_before_its_canvas_is_made(body: bytes) -> None:
    data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    found = refused(data)
    assert found.status is Status.TOO_LARGE
    assert found.width in {2**24, 2**14, 2**14 - 1}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_corrupt(image_format: str, share: float) -> None:
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (99, 99, 3)).astype(np.uint8))
    data = encoded(noise, image_format)
    found = refused(data[: int(len(data) * share)])
    assert (found.status, found.format) == (Status.CORRUPT, image_format.lower())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_errors_are_one_bounded_printable_line() -> None:
    for data in (b"\x89PNG\r\n\x1a\n" + b"\n\xff" * 500, b"\xff\xd8\xff" + b"\r\x00" * 500):
        error = refused(data).error
        assert error.isprintable()
        assert error.isascii()
        assert len(error) < 400


def test_as_torchvisions_loader_reads_a_file(tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader  # noqa: PLC0415 (slow, used once)

    path = tmp_path / "image"
    for mode, image_format in [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG")]:
        data = encoded(picture().convert(mode), image_format)
        path.write_bytes(data)
        expected = np.asarray(pil_loader(path)).transpose(2, 0, 1)
        np.testing.assert_array_equal(decoded(data).pixels, expected)


def test_a_progressive_jpeg_of_very_many_scans_is_refused_before_decoding() -> None:
    progressive = encoded(picture(64, 64), "JPEG", progressive=True)
    scan = b"\xff\xda"
    assert progressive.count(scan) > 1
    assert decoded(progressive).format == "jpeg"
    last = progressive.rindex(scan)
    bomb = progressive[:last] + progressive[last:-2] * 100 + progressive[-2:]

    refusal = refused(bomb)

    assert refusal.status is Status.TOO_LARGE
    assert "scans" in refusal.error
