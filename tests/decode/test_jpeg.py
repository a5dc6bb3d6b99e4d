"""JPEGs are decoded as Pillow decodes them, whichever decoder takes them."""

import struct
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nap_stream.decode.image import DEFAULT_PREPROCESSING, _Reader, decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.jpeg import decode_jpeg, divisor, plain_header
from nap_stream.records import Status
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import encoded, picture
from tests.support.shared_data import shared_data

LIMITS = LimitSettings(max_image_pixels=4_000_000)
Sides = tuple[int, int] | None
SMALL = st.integers(1, 70)
PHOTOSHOP = b"Photoshop 3.0\x00"


def by_pillow(data: bytes, at_least: Sides = None) -> Picture | Refusal:
    return _Reader(data, "jpeg", LIMITS.max_image_pixels, DEFAULT_PREPROCESSING).read(at_least)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def assert_as_pillow(data: bytes, at_least: Sides = None) -> Picture | Refusal:
    found, expected = decode_image(data, LIMITS, at_least), by_pillow(data, at_least)
    if isinstance(expected, Picture):
        assert isinstance(found, Picture), found
        assert torch.equal(found.pixels, expected.pixels)
        assert found.pixels.stride() == expected.pixels.stride()
        assert (found.width, found.height) == (expected.width, expected.height)
    else:
        assert found == expected
    return found


def is_fast(data: bytes, at_least: Sides = None) -> bool:
    header = plain_header(data)
    return header is not None and not isinstance(decode_jpeg(data, header, at_least), str)


def with_segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    data = encoded(picture(), "JPEG")
    size = len(body) + 2 if length is None else length
    return data[:2] + struct.pack(">BBH", 0xFF, marker, size) + body + data[2:]


@pytest.mark.data
@pytest.mark.parametrize("at_least", [None, (100, 60)])
@pytest.mark.parametrize(
    "name", ["imagenet_sample200", "textures_dtd5", "sign_language_digits", "cifar10_test"]
)
def test_real_photos(name: str, at_least: Sides) -> None:
    images = pq.read_table(shared_data(f"{name}.parquet"), columns=["image"])["image"][:200]
    slow = 0
    for data in images.to_pylist():
        assert isinstance(assert_as_pillow(data, at_least), Picture)
        slow += not is_fast(data, at_least)
    assert slow == 0


@given(
    size=st.tuples(SMALL, SMALL),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
    orientation=st.integers(0, 8),
    quality=st.integers(5, 95),
    at_least=st.none() | st.tuples(SMALL, SMALL),
)
@settings(max_examples=100)
def test_any_encoding(
    *,
    size: tuple[int, int],
    mode: str,
    subsampling: str,
    progressive: bool,
    restart: int,
    orientation: int,
    quality: int,
    at_least: Sides,
) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    data = encoded(
        noise(*size, mode),
        "JPEG",
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=restart,
        quality=quality,
        exif=exif,
    )
    found = assert_as_pillow(data, at_least)
    assert isinstance(found, Picture)
    assert (found.width, found.height) == size
    assert is_fast(data, at_least) == (mode != "CMYK")
    if at_least is None:
        expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(found.pixels.permute(1, 2, 0), expected)


@pytest.mark.parametrize("transform", [0, 2])
def test_what_adobe_writes(transform: int) -> None:
    adobe = with_segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([transform]))
    assert isinstance(assert_as_pillow(adobe), Picture)
    cmyk = encoded(noise(30, 20, "CMYK"), "JPEG")
    assert cmyk.count(b"Adobe") == 1
    end = cmyk.index(b"Adobe") + 11
    assert isinstance(assert_as_pillow(cmyk[:end] + bytes([transform]) + cmyk[end + 1 :]), Picture)


@pytest.mark.parametrize(
    ("marker", "body", "length", "is_good"),
    [
        (0xED, PHOTOSHOP + b"8BIM\x03\xed\x00\x00" + bytes(20), None, True),
        (0xED, PHOTOSHOP + b"8BIM\x03\xed", None, False),
        (0xE0, b"JFIF\x00", None, False),
        (0xE2, b"ICC_PROFILE\x00\x01", None, False),
        (0xEE, b"Adobe", None, False),
        (0xFE, b"", None, True),
        (0xFE, b"", 1, True),
        (0xE5, b"", 0, True),
        (0xDC, bytes(2), None, True),
        (0x01, bytes(20), None, False),
        (0xC0, struct.pack(">BHHB9B", 8, 9, 13, 3, *bytes(9)), None, False),
    ],
)
def test_segments_over_which_pillow_or_libjpeg_stumbles(
    marker: int, body: bytes, length: int | None, is_good: bool
) -> None:
    found = assert_as_pillow(with_segment(marker, body, length))
    assert isinstance(found, Picture) == is_good


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xda\0\2"]
)
def test_what_has_no_header(data: bytes) -> None:
    assert plain_header(data) is None


@given(data=st.data(), progressive=st.booleans(), mode=st.sampled_from(["RGB", "L", "CMYK"]))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_files_are_refused_or_mended_as_by_pillow(
    data: st.DataObject, progressive: bool, mode: str
) -> None:
    sample = bytearray(
        encoded(
            noise(20, 9, mode),
            "JPEG",
            progressive=progressive,
            icc_profile=bytes(30),
            comment=b"text",
        )
    )
    positions = st.integers(3, len(sample) - 1)
    markers = st.sampled_from([0, 1, 2, 0xC0, 0xC2, 0xD9, 0xDA, 0xE0, 0xED, 0xEE, 0xFE, 0xFF])
    changes = st.lists(st.tuples(positions, markers | st.integers(0, 255)), max_size=4)
    for position, byte in data.draw(changes):
        sample[position] = byte
    start, length = data.draw(positions), data.draw(st.integers(0, 12))
    del sample[start : start + length]
    end = data.draw(st.just(len(sample)) | positions)
    at_least = data.draw(st.sampled_from([None, (4, 4)]))
    assert_as_pillow(bytes(sample[:end]), at_least)


def test_data_after_the_image_and_a_missing_end() -> None:
    data = encoded(noise(40, 30), "JPEG")
    assert isinstance(assert_as_pillow(data + b"more"), Picture)
    assert isinstance(assert_as_pillow(data[:-2]), Refusal)


def test_a_huge_declared_size_is_refused_before_decoding() -> None:
    data = encoded(picture(), "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    huge = data[:frame] + struct.pack(">HH", 65_000, 64_000) + data[frame + 4 :]
    found = decode_image(huge, LIMITS)
    assert isinstance(found, Refusal)
    assert found == by_pillow(huge)
    assert (found.status, found.width, found.height) == (Status.TOO_LARGE, 64_000, 65_000)


def test_pixels_are_the_decoders_own_memory() -> None:
    found = decode_image(encoded(picture(), "JPEG"), LIMITS)
    assert isinstance(found, Picture)
    assert found.pixels.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((4000, 3000), None, 1),
        ((4000, 3000), (256, 256), 8),
        ((2047, 2048), (256, 256), 4),
        ((2048, 2048), (256, 256), 8),
        ((500, 511), (256, 256), 1),
        ((512, 511), (200, 256), 2),
        ((511, 512), (200, 256), 1),
        ((60_000, 60_000), (8, 8), 8),
        ((7, 4000), (1, 1), 1),
        ((8, 9), (1, 1), 8),
    ],
)
def test_the_largest_divisor_that_leaves_enough(
    size: tuple[int, int], at_least: Sides, expected: int
) -> None:
    assert divisor(*size, at_least) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_decoding_rounds_up_and_keeps_the_files_size(mode: str) -> None:
    image = picture(801, 603).convert(mode)
    found = assert_as_pillow(encoded(image, "JPEG"), (150, 150))
    assert isinstance(found, Picture)
    assert found.pixels.shape == (3, 151, 201)
    assert (found.width, found.height) == (801, 603)
    small = image.convert("RGB").resize((201, 151), Image.Resampling.BOX)
    difference = found.pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(small)
    assert np.abs(difference).mean() < 2


def test_only_jpegs_are_decoded_scaled() -> None:
    found = decode_image(encoded(picture(80, 60), "PNG"), LIMITS, (8, 8))
    assert isinstance(found, Picture)
    assert found.pixels.shape == (3, 60, 80)
