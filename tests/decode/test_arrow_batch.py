from datetime import UTC, datetime

import pyarrow as pa
import pytest

from nap_stream.decode.arrow import read_batch
from nap_stream.decode.picture import Refusal
from nap_stream.records import SourceImage, Status
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import arrow_stream, arrow_stream_of, jpeg

LIMITS = LimitSettings()


def items(value: bytes) -> tuple[SourceImage, ...]:
    found = read_batch(value, LIMITS)
    assert not isinstance(found, Refusal), found
    return found


def refused(value: bytes, limits: LimitSettings = LIMITS) -> Refusal:
    found = read_batch(value, limits)
    assert isinstance(found, Refusal)
    return found


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_in_order(kind: pa.DataType) -> None:
    found = items(arrow_stream({"image": pa.array([b"one", None, b""], kind)}))
    assert [item.data for item in found] == [b"one", None, b""]
    assert {(item.key, item.has_key, item.event_time_ms) for item in found} == {(None, False, None)}


def test_several_record_batches() -> None:
    batches = [
        pa.record_batch([pa.array(images, pa.binary())], names=["image"])
        for images in ([b"a", b"b"], [], [b"c"])
    ]
    assert [item.data for item in items(arrow_stream_of(batches))] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_keys(kind: pa.DataType) -> None:
    keys = pa.array(["camera-ü", None], pa.string()).cast(kind)
    found = items(arrow_stream({"image": [b"a", b"b"], "key": keys}))
    assert [(item.key, item.has_key) for item in found] == [
        ("camera-ü".encode(), True),
        (None, True),
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_event_times_of_any_unit(unit: str, zone: str | None) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    given = moment if zone else moment.replace(tzinfo=None)
    times = pa.array([given, None], pa.timestamp(unit, zone))
    found = items(arrow_stream({"image": [b"a", b"b"], "event_time": times}))
    assert [item.event_time_ms for item in found] == [1_714_979_289_000, None]


def test_event_times_beyond_64_bits_of_milliseconds_do_not_overflow() -> None:
    times = pa.array([2**62], pa.int64()).cast(pa.timestamp("s"))
    found = items(arrow_stream({"image": [b"a"], "event_time": times}))
    assert found[0].event_time_ms == 2**62 * 1000


def test_other_columns_are_ignored() -> None:
    value = arrow_stream({"note": pa.array([1.5]), "image": [b"a"], "more": pa.array([[1]])})
    assert [item.data for item in items(value)] == [b"a"]


@pytest.mark.parametrize("images", [[], None])
def test_no_rows(images: list[bytes] | None) -> None:
    schema = pa.schema([("image", pa.binary())])
    batch = pa.RecordBatch.from_pylist([], schema)
    value = arrow_stream_of([batch]) if images is not None else schema_alone(schema)
    assert refused(value).status is Status.EMPTY


def schema_alone(schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()
    return bytes(sink.getvalue().to_pybytes())


def test_too_many_rows() -> None:
    value = arrow_stream({"image": [b"a"] * 4})
    assert refused(value, LimitSettings(max_images_per_message=3)).status is Status.TOO_LARGE
    assert not isinstance(read_batch(value, LimitSettings(max_images_per_message=4)), Refusal)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": pa.array([b"a"])}, "no column 'image' (columns: picture)"),
        ({"image": pa.array(["a"])}, "column 'image' is string, expected binary"),
        ({"image": pa.array([b"a"]), "key": pa.array([1])}, "column 'key' is int64"),
        ({"image": pa.array([b"a"]), "event_time": pa.array([1])}, "'event_time' is int64"),
        (
            {"image": pa.array([b"a"]), "kind": pa.array(["x"]).dictionary_encode()},
            "dictionary-encoded",
        ),
        ({"image": pa.array([b"a"]).dictionary_encode()}, "dictionary"),
    ],
)
def test_columns_that_are_not_as_expected(columns: dict[str, pa.Array], message: str) -> None:
    found = refused(arrow_stream(columns))
    assert found.status is Status.BAD_BATCH
    assert message in found.error


def test_two_columns_of_images() -> None:
    batch = pa.record_batch([pa.array([b"a"]), pa.array([b"b"])], names=["image", "image"])
    assert "2 columns 'image'" in refused(arrow_stream_of([batch])).error


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_bodies_are_refused(codec: str) -> None:
    value = arrow_stream({"image": [bytes(2**20)]}, compression=codec)
    found = refused(value)
    assert (found.status, "compressed" in found.error) == (Status.BAD_BATCH, True)


@pytest.mark.parametrize(
    ("version", "metadata", "said"),
    [
        ("V4", {"ARROW:experimental_compression": "zstd"}, "compressed"),
        ("V5", {"ARROW:experimental_compression": "zstd"}, "compressed"),
        ("V4", None, "older than Arrow 1.0"),
        ("V5", {"note": "mine"}, None),
    ],
)
def test_compression_as_formats_before_v5_say_it_is_refused(
    version: str, metadata: dict[str, str] | None, said: str | None
) -> None:
    batch = pa.record_batch([pa.array([jpeg()], pa.binary())], names=["image"])
    written_as = getattr(pa.ipc.MetadataVersion, version)
    value = arrow_stream_of([batch], metadata, metadata_version=written_as)
    if said is None:
        assert len(items(value)) == 1
        return
    found = refused(value)
    assert found.status is Status.BAD_BATCH
    assert said in found.error


def test_offsets_that_point_beyond_the_data() -> None:
    value = arrow_stream({"image": [jpeg()]})
    offsets = (0).to_bytes(4, "little") + len(jpeg()).to_bytes(4, "little")
    at = value.index(offsets)
    for end in (2**31 - 1, 2**32 - 5, len(jpeg()) + 4096):
        lying = value[: at + 4] + end.to_bytes(4, "little") + value[at + 8 :]
        assert refused(lying).status is Status.BAD_BATCH


@pytest.mark.parametrize("value", [b"", b"\xff", b"not arrow at all", jpeg(), bytes(64)])
def test_what_is_no_arrow_stream(value: bytes) -> None:
    found = refused(value)
    assert found.status is Status.BAD_BATCH
    assert found.error.isprintable()


def test_a_stream_cut_in_its_body() -> None:
    value = arrow_stream({"image": [jpeg()] * 3})
    assert refused(value[: len(value) // 2]).status is Status.BAD_BATCH
