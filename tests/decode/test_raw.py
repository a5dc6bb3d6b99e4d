"""Raw frames and numpy files, against values computed by hand and pixel by pixel."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture, Refusal
from nap_stream.decode.raw import demosaiced, frame_bytes
from nap_stream.records import Status
from nap_stream.settings.frames import RawSettings
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings
from tests.support.image_bytes import encoded, npy, picture

PATTERNS = ("rggb", "grbg", "gbrg", "bggr")
RAMP = (np.arange(6 * 8).reshape(6, 8) * 80).astype(np.uint16)
"""Up to 3,760: 12 bits."""


def read(data: bytes, kind: str, width: int = 8, height: int = 6, **keys: Any) -> Picture | Refusal:
    raw = {"format": kind, "width": width, "height": height}
    return decode_image(
        data, LimitSettings(), None, PreprocessingSettings.model_validate({"raw": raw, **keys})
    )


def pixels(data: bytes, kind: str, **keys: Any) -> NDArray[np.uint8]:
    found = read(data, kind, **keys)
    assert isinstance(found, Picture), found
    assert (found.format, found.width, found.height) == ("raw", 8, 6)
    assert found.pixels.stride(0) == 1
    return np.asarray(found.pixels.numpy())


def _bits(samples: NDArray[Any], bits: int) -> bytes:
    whole = sum(int(sample) << place * bits for place, sample in enumerate(samples.flatten()))
    return whole.to_bytes((samples.size * bits + 7) // 8, "little")


def _packed_12(samples: NDArray[np.uint16]) -> bytes:
    first, second = samples.flatten()[::2], samples.flatten()[1::2]
    low = (first & 15) | (second & 15) << 4
    return np.stack([first >> 4, low, second >> 4], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("kind", "data", "shift"),
    [
        ("mono8", (RAMP >> 4).astype(np.uint8).tobytes(), 4),
        ("mono12", RAMP.astype("<u2").tobytes(), 4),
        ("mono14", (RAMP << 2).astype("<u2").tobytes(), 4),
        ("mono10", (RAMP >> 2).astype("<u2").tobytes(), 4),
        ("mono16", (RAMP << 4).astype("<u2").tobytes(), 4),
        ("mono12p", _bits(RAMP, 12), 4),
        ("mono10p", _bits(RAMP >> 2, 10), 4),
        ("mono12packed", _packed_12(RAMP), 4),
    ],
)
def test_mono(kind: str, data: bytes, shift: int) -> None:
    for channel in pixels(data, kind):
        np.testing.assert_array_equal(channel, RAMP >> shift)


def test_mono16_of_12_bits() -> None:
    found = read(RAMP.astype("<u2").tobytes(), "mono16")
    assert isinstance(found, Picture)
    assert found.warning is not None
    np.testing.assert_array_equal(pixels(RAMP.tobytes(), "mono16", bits=12)[0], RAMP >> 4)


def test_samples_beyond_the_bits_of_the_format() -> None:
    found = read((RAMP + 4_096).astype("<u2").tobytes(), "mono12")
    assert isinstance(found, Picture)
    assert found.warning is not None
    assert found.pixels.min() == 255


@pytest.mark.parametrize("kind", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_colours(kind: str) -> None:
    image = np.asarray(picture(8, 6))
    alpha = np.full((6, 8, 1), 7, np.uint8)
    by_name = dict(zip("rgba", [*image.transpose(2, 0, 1)[..., None], alpha], strict=True))
    data = np.concatenate([by_name[name] for name in kind[:-1]], 2).tobytes()
    np.testing.assert_array_equal(pixels(data, kind).transpose(1, 2, 0), image)
    swapped = pixels(data, kind, channel_order="bgr")
    np.testing.assert_array_equal(swapped.transpose(1, 2, 0), image[..., ::-1])


def _one_by_one(mosaic: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """Bilinear demosaicing, pixel by pixel; the weights of neighbours are 4, 2 and 1."""
    height, width = mosaic.shape
    padded = np.pad(mosaic.astype(int), 1, "reflect")
    found = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            own = pattern[row % 2 * 2 + column % 2]
            for place, colour in enumerate("rgb"):
                sums = weights = 0
                for down in (-1, 0, 1):
                    for across in (-1, 0, 1):
                        name = pattern[(row + down) % 2 * 2 + (column + across) % 2]
                        far = abs(down) + abs(across)
                        if name == colour and (colour != "g" or far < 2):
                            weight = 4 >> far
                            if colour == "g":
                                weight = 1
                            sums += weight * padded[row + 1 + down, column + 1 + across]
                            weights += weight
                if own == colour:
                    sums, weights = int(mosaic[row, column]), 1
                found[row, column, place] = (sums + weights // 2) // weights
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(2, 2), (6, 8), (7, 5), (3, 9), (300, 4)])
def test_bayer_is_bilinear(pattern: str, shape: tuple[int, int]) -> None:
    mosaic = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(demosaiced(mosaic, pattern), _one_by_one(mosaic, pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_bayer_frame_of_one_colour_has_that_colour(pattern: str, bits: int) -> None:
    colour = {"r": 200, "g": 100, "b": 50}
    mosaic = np.zeros((6, 8), np.uint16)
    for place, name in enumerate(pattern):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour[name] << (bits - 8)
    data = mosaic.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    found = pixels(data, f"bayer_{pattern}{bits}")
    assert found.reshape(3, -1).min(1).tolist() == [200, 100, 50]
    assert found.reshape(3, -1).max(1).tolist() == [200, 100, 50]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5), (5, 1)])
def test_bayer_frames_of_one_row_or_column(width: int, height: int) -> None:
    assert isinstance(read(bytes(width * height), "bayer_rggb8", width, height), Picture)


def test_a_frame_of_another_size_is_refused_with_both() -> None:
    found = read(bytes(47), "mono8")
    assert isinstance(found, Refusal)
    assert found.status is Status.UNSUPPORTED
    assert (
        "nor a frame of 48 bytes (model.preprocessing.raw: mono8, 8 x 6) but of 47" in found.error
    )


def test_image_files_are_read_beside_frames() -> None:
    found = read(encoded(picture(), "PNG"), "mono8")
    assert isinstance(found, Picture)
    assert found.format == "png"


def test_a_frame_beyond_the_limit_is_too_large() -> None:
    raw = RawSettings(format="mono8", width=100, height=100)
    found = decode_image(
        bytes(10_000), LimitSettings(max_image_pixels=9_999), None, PreprocessingSettings(raw=raw)
    )
    assert isinstance(found, Refusal)
    assert (found.status, found.width, found.height) == (Status.TOO_LARGE, 100, 100)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("mono8", 35),
        ("mono12", 70),
        ("mono12p", 53),
        ("mono10p", 44),
        ("rgb8", 105),
        ("bgra8", 140),
    ],
)
def test_bytes_of_a_frame(kind: str, size: int) -> None:
    settings = RawSettings.model_validate({"format": kind, "width": 7, "height": 5})
    assert frame_bytes(settings) == size


def test_settings_of_raw_frames_are_checked() -> None:
    for tree in ({"format": "yuv"}, {"width": 0}, {"stride": 4}):
        with pytest.raises(ValidationError):
            RawSettings.model_validate({"format": "mono8", "width": 1, "height": 1} | tree)


IMAGE = np.asarray(picture(8, 6))


@pytest.mark.parametrize(
    "array",
    [
        IMAGE,
        np.asfortranarray(IMAGE),
        IMAGE.transpose(2, 0, 1),
        np.concatenate([IMAGE, IMAGE[..., :1]], 2),
        IMAGE.astype(">u2") << 8,
        IMAGE.astype("<u2") << 8,
    ],
    ids=["HWC", "columns", "CHW", "alpha", "big-endian", "little-endian"],
)
def test_numpy_arrays(array: NDArray[Any]) -> None:
    found = decode_image(npy(array), LimitSettings())
    assert isinstance(found, Picture), found
    assert (found.format, found.width, found.height) == ("npy", 8, 6)
    np.testing.assert_array_equal(found.pixels.permute(1, 2, 0), IMAGE)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (1, 6, 8)])
def test_grey_numpy_arrays(shape: tuple[int, ...]) -> None:
    found = decode_image(npy(IMAGE[..., 0].reshape(shape)), LimitSettings())
    assert isinstance(found, Picture), found
    for channel in found.pixels:
        np.testing.assert_array_equal(channel, IMAGE[..., 0])


def header(text: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    encoded_text = text.encode()
    length = len(encoded_text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + encoded_text + body


def _dict(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([{"a": 1}], object), allow_pickle=True),
        npy(IMAGE.astype(np.float32)),
        npy(IMAGE.astype(np.int64)),
        npy(np.zeros((2, 3, 5, 7), np.uint8)),
        npy(np.zeros((6, 8, 2), np.uint8)),
        npy(np.zeros(7, np.uint8)),
        npy(np.zeros((0, 8), np.uint8)),
        npy(np.zeros((2, 2), [("a", "u1"), ("b", "u1")])),
        npy(IMAGE)[:-1],
        npy(IMAGE) + b"\0",
        npy(IMAGE)[:20],
        b"\x93NUMPY",
        header(_dict("(100000, 100000)")),
        header(_dict("(1099511627776, 1099511627776)")),
        header(_dict("(-1, 8)")),
        header(_dict("(True, 8)")),
        header(_dict("()")),
        header("(" * 3_000),
        header("[" * 65_000),
        header("__import__('os').system('true')\n"),
        header(_dict("(6, 8)").ljust(60_000), bytes(48)),
        header(_dict("(6, 8)"), bytes(48), b"\3\0"),
        header(_dict("(6, 8)"), bytes(48), b"\7\0"),
        header("{'descr': '|u1', 'shape': (6, 8)}\n", bytes(48)),
        header(_dict("(6, 8)", "|V1000000000"), bytes(48)),
        b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    ],
    ids=range(26),
)
def test_numpy_files_that_are_not_pixels(data: bytes) -> None:
    found = decode_image(data, LimitSettings())
    assert isinstance(found, Refusal), found
    assert found.format == "npy"
    assert found.status in {Status.CORRUPT, Status.UNSUPPORTED, Status.TOO_LARGE}
