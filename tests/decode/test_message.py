import hashlib
import weakref

import pyarrow as pa
import pytest
import torch

from nap_stream.dead_letter import dead_letter_headers
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.decode.message import decode_message
from nap_stream.jpeg import undecoded_jpeg
from nap_stream.records import EncodedJpeg, FailedImage, Message, Origin, Status, TopicPartition
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, encoded, jpeg, picture
from tests.support.scored_records import DecodedImage, images_of

PARTITION = TopicPartition("images", 3)
Headers = tuple[tuple[str, bytes | None], ...]


def message(value: bytes | None, headers: Headers = (), timestamp_ms: int = 1_000) -> Message:
    return Message(PARTITION, 17, timestamp_ms, b"key", value, headers)


def rows(
    given: Message, kept: tuple[str, ...] = (), limits: LimitSettings | None = None
) -> list[DecodedImage | FailedImage]:
    decoded = decode_message(
        given, limits or LimitSettings(), kept_headers=kept, ingest_time_ms=2_000
    )
    return images_of(decoded, given.partition)


def failed(row: DecodedImage | FailedImage) -> FailedImage:
    assert isinstance(row, FailedImage)
    return row


def test_a_message_that_is_a_dead_letter_is_told() -> None:
    origin = Origin(PARTITION, 7, 0, None, 0, 0)
    letter = FailedImage(origin, Status.CORRUPT, "damaged", b"no image", None)
    for headers, is_letter in ((dead_letter_headers(letter), True), (ARROW_HEADERS, False)):
        given = message(b"no image", tuple(headers))
        found = decode_message(given, LimitSettings(), kept_headers=(), ingest_time_ms=0)
        assert [image.origin.is_letter for image in found.failed] == [is_letter]


def test_one_image_a_message() -> None:
    headers: Headers = (("camera", b"1"), ("secret", b"x"), ("camera", None))
    (row,) = rows(message(jpeg(), headers), kept=("camera", "absent"))
    assert isinstance(row, DecodedImage)
    assert (row.width, row.height, row.format) == (13, 9, "jpeg")
    assert row.sha256 == hashlib.sha256(jpeg()).hexdigest()
    assert row.origin.partition == PARTITION
    assert (row.origin.offset, row.origin.index, row.origin.key) == (17, 0, b"key")
    assert (row.origin.event_time_ms, row.origin.ingest_time_ms) == (1_000, 2_000)
    assert row.origin.headers == (("camera", b"1"), ("camera", None))


@pytest.mark.parametrize(
    ("value", "status", "digest"),
    [
        (None, Status.TOMBSTONE, None),
        (b"", Status.EMPTY, None),
        (b"hello", Status.UNSUPPORTED, hashlib.sha256(b"hello").hexdigest()),
        (jpeg()[:-50], Status.CORRUPT, hashlib.sha256(jpeg()[:-50]).hexdigest()),
    ],
)
@pytest.mark.parametrize("content_type", [None, b"image/jpeg", ARROW_STREAM.encode()])
def test_a_value_that_has_no_image(
    value: bytes | None, status: Status, digest: str | None, content_type: bytes | None
) -> None:
    (row,) = rows(message(value, (("content-type", content_type),)))
    is_batch = content_type == ARROW_STREAM.encode() and value
    assert failed(row).status is (Status.BAD_BATCH if is_batch else status)
    assert failed(row).payload == value
    assert row.sha256 == digest


@pytest.mark.parametrize("headers", [(), ARROW_HEADERS])
def test_a_message_that_is_too_large(headers: Headers) -> None:
    value = arrow_stream({"image": [jpeg()]})
    (row,) = rows(message(value, headers), limits=LimitSettings(max_message_bytes=len(value) - 1))
    assert failed(row).status is Status.TOO_LARGE
    assert failed(row).payload == value
    assert "limits.max_message_bytes" in failed(row).error


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "CONTENT-TYPE"])
@pytest.mark.parametrize("parameters", [b"", b"; charset=x", b" ;a=b"])
def test_a_batch_is_told_by_its_header(name: str, parameters: bytes) -> None:
    value = arrow_stream({"image": [jpeg(0), jpeg(1)]})
    given = message(value, ((name, ARROW_STREAM.upper().encode() + parameters),))
    found = rows(given)
    assert [row.origin.index for row in found] == [0, 1]
    assert [row.sha256 for row in found] == [
        hashlib.sha256(jpeg(seed)).hexdigest() for seed in (0, 1)
    ]


def test_a_bad_image_spoils_only_its_own_row() -> None:
    images = [jpeg(0), None, b"", b"text", jpeg(1)[:-60], jpeg(2)]
    found = rows(message(arrow_stream({"image": images}), ARROW_HEADERS))
    assert [row.status if isinstance(row, FailedImage) else Status.OK for row in found] == [
        Status.OK,
        Status.TOMBSTONE,
        Status.EMPTY,
        Status.UNSUPPORTED,
        Status.CORRUPT,
        Status.OK,
    ]
    assert [row.payload for row in found if isinstance(row, FailedImage)] == images[1:5]


def test_limits_hold_for_each_image_of_a_batch() -> None:
    limits = LimitSettings(max_image_bytes=len(jpeg()))
    found = rows(
        message(arrow_stream({"image": [jpeg(), jpeg() + b"\0"]}), ARROW_HEADERS), limits=limits
    )
    assert isinstance(found[0], DecodedImage)
    assert failed(found[1]).status is Status.TOO_LARGE


def test_keys_and_times_of_a_batch() -> None:
    columns = {
        "image": [b"x", b"y"],
        "key": pa.array([b"one", None]),
        "event_time": pa.array([5_000, None], pa.timestamp("ms")),
    }
    first, second = rows(message(arrow_stream(columns), ARROW_HEADERS))
    assert (first.origin.key, first.origin.event_time_ms) == (b"one", 5_000)
    assert (second.origin.key, second.origin.event_time_ms) == (None, 1_000)


def test_without_a_column_the_key_is_the_messages() -> None:
    (row,) = rows(message(arrow_stream({"image": [b"x"]}), ARROW_HEADERS))
    assert row.origin.key == b"key"


@pytest.mark.parametrize("wrong", [-1, -(2**62), 253_402_300_800_000])
def test_times_beyond_the_calendar_count_as_absent(wrong: int) -> None:
    (row,) = rows(message(jpeg(), timestamp_ms=wrong))
    assert row.origin.event_time_ms == 2_000
    times = pa.array([wrong], pa.timestamp("ms"))
    value = arrow_stream({"image": [b"x"], "event_time": times})
    assert rows(message(value, ARROW_HEADERS))[0].origin.event_time_ms == 1_000


def test_a_batch_that_is_refused_is_one_row() -> None:
    value = arrow_stream({"image": [jpeg()] * 3})
    (row,) = rows(message(value, ARROW_HEADERS), limits=LimitSettings(max_images_per_message=2))
    assert failed(row).status is Status.TOO_LARGE
    assert failed(row).payload == value
    (row,) = rows(message(arrow_stream({"image": []}), ARROW_HEADERS))
    assert failed(row).status is Status.EMPTY


def test_an_image_is_prepared_before_the_next_one_is_decoded() -> None:
    """So that a batch holds one image of the file's size at a time."""
    whole: list[weakref.ref[torch.Tensor]] = []

    def prepare(pixels: torch.Tensor) -> torch.Tensor:
        assert not any(reference() is not None for reference in whole)
        whole.append(weakref.ref(pixels))
        return pixels[:, :1, :1].clone()

    value = arrow_stream({"image": [jpeg(0), b"text", jpeg(1)]})
    decoded = decode_message(
        message(value, ARROW_HEADERS),
        LimitSettings(),
        kept_headers=(),
        ingest_time_ms=0,
        prepare=prepare,
    )

    shapes = [image.shape for image in decoded.pixels if isinstance(image, torch.Tensor)]
    assert shapes == [(3, 1, 1)] * 2
    assert decoded.columns["width"] == [13, None, 13]


def test_a_key_that_every_row_would_repeat_is_limited() -> None:
    value = arrow_stream({"image": [None] * 100})
    big = Message(PARTITION, 17, 1_000, b"k" * 2_000, value, ARROW_HEADERS)

    (row,) = rows(big, limits=LimitSettings(max_key_bytes=1_000))

    assert failed(row).status is Status.TOO_LARGE
    assert "limits.max_key_bytes = 1000" in failed(row).error
    assert row.origin.key is None
    assert failed(row).payload == value


def test_kept_headers_count_with_the_key_and_others_do_not() -> None:
    headers = (("kept", b"h" * 2_000), ("other", b"o" * 2_000))
    given = Message(PARTITION, 17, 1_000, b"key", jpeg(), headers)
    limits = LimitSettings(max_key_bytes=1_000)

    (without,) = rows(given, limits=limits)
    (kept,) = rows(given, kept=("kept",), limits=limits)

    assert isinstance(without, DecodedImage)
    assert failed(kept).status is Status.TOO_LARGE
    assert kept.origin.headers == ()


PLAIN = jpeg(3)
CUT = PLAIN[:-2]


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (None, LimitSettings()),
        (b"", LimitSettings()),
        (encoded(picture(), "PNG"), LimitSettings()),
        (encoded(picture(), "JPEG", progressive=True), LimitSettings()),
        (encoded(picture().convert("CMYK"), "JPEG"), LimitSettings()),
        (CUT, LimitSettings()),
        (
            PLAIN[:2] + b"\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00" + PLAIN[2:],
            LimitSettings(),
        ),
        (PLAIN, LimitSettings(max_image_bytes=len(PLAIN) - 1)),
        (PLAIN, LimitSettings(max_image_pixels=13 * 9 - 1)),
    ],
)
def test_what_only_the_cpu_decodes_is_not_left(data: bytes | None, limits: LimitSettings) -> None:
    assert undecoded_jpeg(data, limits) is None


def test_plain_jpegs_are_left_undecoded_in_order() -> None:
    value = arrow_stream({"image": [jpeg(0), b"text", encoded(picture(), "PNG"), jpeg(1)]})
    given = message(value, ARROW_HEADERS)
    decoded = decode_message(
        given, LimitSettings(), kept_headers=(), ingest_time_ms=7, leaves_jpegs=True
    )
    first, png, last = decoded.pixels

    assert decoded.columns["status"] == ["ok", "unsupported", "ok", "ok"]
    assert decoded.columns["width"] == [13, None, 13, 13]
    assert decoded.columns["format"] == ["jpeg", None, "png", "jpeg"]
    assert isinstance(first, EncodedJpeg)
    assert isinstance(png, torch.Tensor)
    assert isinstance(last, EncodedJpeg)
    assert (first.data, last.data) == (jpeg(0), jpeg(1))
    assert (last.origin.partition, last.origin.offset) == (given.partition, given.offset)
    assert (last.origin.index, last.origin.ingest_time_ms) == (3, 7)
    assert last.sha256 == decoded.columns["sha256"][3]
    assert last.nbytes == len(jpeg(1))
