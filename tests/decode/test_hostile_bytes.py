"""Whatever a message holds, decoding gives rows and never raises or warns."""

import warnings
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nap_stream.decode.message import decode_message
from nap_stream.records import Message, TopicPartition
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, encoded, heic, npy, picture
from tests.support.scored_records import DecodedImage, images_of

LIMITS = LimitSettings(max_image_pixels=10_000, max_images_per_message=50)
Headers = tuple[tuple[str, bytes | None], ...]


def check(value: bytes, headers: Headers) -> None:
    message = Message(TopicPartition("t", 0), 0, 0, None, value, headers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_message(message, LIMITS, kept_headers=(), ingest_time_ms=0)
    rows = images_of(decoded, message.partition)
    assert [row.origin.index for row in rows] == list(range(len(rows)))
    assert 1 <= len(rows) <= LIMITS.max_images_per_message
    for row in rows:
        if isinstance(row, DecodedImage):
            assert row.width * row.height <= LIMITS.max_image_pixels


def batch() -> bytes:
    return arrow_stream(
        {
            "image": [SAMPLES["jpeg"](), None, b"text"],
            "key": pa.array(["a", None, "c"]),
            "event_time": pa.array([1, 2, None], pa.timestamp("us")),
        }
    )


SAMPLES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "progressive jpeg": lambda: encoded(picture(), "JPEG", progressive=True),
    "exif jpeg": lambda: encoded(
        picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + bytes(30)
    ),
    "png": lambda: encoded(picture(), "PNG"),
    "palette png": lambda: encoded(picture().convert("P"), "PNG", transparency=b"\0\x80"),
    "webp": lambda: encoded(picture(), "WEBP"),
    "lossless webp": lambda: encoded(picture().convert("RGBA"), "WEBP", lossless=True),
    "bmp": lambda: encoded(picture().convert("P"), "BMP"),
    "gif": lambda: encoded(picture(), "GIF", comment=b"a comment"),
    "tiff": lambda: encoded(picture(), "TIFF"),
    "deflated tiff": lambda: encoded(picture(), "TIFF", compression="tiff_deflate"),
    "jpeg tiff": lambda: encoded(picture(), "TIFF", compression="jpeg"),
    "16-bit tiff": lambda: encoded(picture().convert("I;16"), "TIFF"),
    "avif": lambda: encoded(picture(), "AVIF", speed=10),
    "heic": lambda: heic(picture()),
    "npy": lambda: npy(np.asarray(picture())),
    "arrow": batch,
}


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [
            *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8L"),
            *(b"GIF89a", b"II*\0", b"MM\0*", b"\x93NUMPY\1\0", b"BM" + bytes(12) + b"\x28\0\0\0"),
            *(b"\0\0\0\x10ftypavif\0\0\0\0", b"\0\0\0\x10ftypheic\0\0\0\0", b"\0\0\0\0\7"),
        ]
    ),
)
@settings(max_examples=100)
def test_random_bytes(tail: bytes, magic: bytes) -> None:
    for headers in ((), ARROW_HEADERS):
        check(magic + tail, headers)


@pytest.mark.parametrize(
    "name",
    # libheif takes its time.
    [pytest.param(name, marks=pytest.mark.slow) if name == "heic" else name for name in SAMPLES],
)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_files(name: str, data: st.DataObject) -> None:
    sample = SAMPLES[name]()
    mutated = bytearray(sample)
    positions = st.integers(0, len(sample) - 1)
    changes = st.tuples(positions, st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 255])))
    for position, byte in data.draw(st.lists(changes, min_size=1, max_size=8)):
        mutated[position] = byte
    end = data.draw(st.one_of(st.just(len(sample)), positions))
    headers = ARROW_HEADERS if name == "arrow" else ()
    check(bytes(mutated[:end]), headers)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=60))
def test_any_column_of_images_gives_a_row_each(images: list[bytes | None]) -> None:
    check(arrow_stream({"image": images}), ARROW_HEADERS)
