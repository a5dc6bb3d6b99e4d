import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from nap_stream.core.prior import nap
from nap_stream.decode.message import decode_message
from nap_stream.decode.outputs import OutputShapes, read_outputs
from nap_stream.decode.picture import Refusal
from nap_stream.records import Message, ModelOutput, SourceImage, Status, TopicPartition
from nap_stream.settings.schema import LimitSettings
from tests.support.image_bytes import arrow_stream, arrow_stream_of, jpeg
from tests.support.outputs import FORMS, batch_of, fixed, lists, some_outputs, stream_of

LIMITS = LimitSettings()
SHAPES = OutputShapes((5,), 4, (4, 2, 3), needs_features=True)
OUTPUTS = some_outputs()


def items(value: bytes, shapes: OutputShapes | None = SHAPES) -> tuple[SourceImage, ...]:
    found = read_outputs(value, LIMITS, shapes)
    assert not isinstance(found, Refusal), found
    return found


def outputs(value: bytes, shapes: OutputShapes | None = SHAPES) -> list[ModelOutput]:
    found = [item.output for item in items(value, shapes)]
    assert None not in found
    return [one for one in found if one is not None]


def refused(value: bytes, shapes: OutputShapes | None = SHAPES) -> Refusal:
    found = read_outputs(value, LIMITS, shapes)
    assert isinstance(found, Refusal)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [SHAPES, None])
def test_every_form_of_the_map(form: str, shapes: OutputShapes | None) -> None:
    found = outputs(stream_of(OUTPUTS, form), shapes)
    expected = nap(torch.from_numpy(OUTPUTS["feature_map"])).numpy()
    np.testing.assert_allclose([one.nap for one in found], expected, rtol=1e-6)
    for row, one in enumerate(found):
        np.testing.assert_array_equal(one.logits, OUTPUTS["logits"][row])
        assert one.features is not None
        np.testing.assert_array_equal(one.features, OUTPUTS["features"][row])


def test_a_prior_that_was_computed_by_hand() -> None:
    arrays = {
        "logits": np.zeros((1, 5), np.float32),
        "features": np.zeros((1, 4), np.float32),
        # Ratios 6 / (2 + 1), 0, 1 / (1 / 3 + 1) and 0: the mean of squares is (4 + 9 / 16) / 4.
        "feature_map": np.array(
            [[[[6, 0, 0], [6, 0, 0]], [[0, 0, 0], [0, 0, 0]],
              [[1, 0, 0], [0, -1, 0]], [[-1, -1, -1], [-1, -1, -1]]]], np.float32
        ),
    }  # fmt: skip
    for form in ("nested", "channels"):
        (one,) = outputs(stream_of(arrays, form))
        assert one.nap == pytest.approx((4 + 9 / 16) / 4)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_dtypes_and_lists_of_any_kind_and_the_digest(kind: type[np.floating]) -> None:
    arrays = {name: array.astype(kind) for name, array in OUTPUTS.items()}
    plain = batch_of(arrays, "metadata")
    large = pa.large_list(pa.from_numpy_dtype(np.dtype(kind)))
    batch = plain.set_column(0, "logits", lists(arrays["logits"]).cast(large))
    for row, one in enumerate(outputs(arrow_stream_of([batch]))):
        assert one.logits.dtype == np.float32
        np.testing.assert_array_equal(one.logits, arrays["logits"][row].astype(np.float32))
        joined = b"".join(arrays[name][row].tobytes() for name in OUTPUTS)
        assert one.sha256 == hashlib.sha256(joined).hexdigest()


def test_keys_and_times_are_those_of_image_batches_and_other_columns_are_ignored() -> None:
    times = pa.array([1_700_000_000, None, 2], pa.timestamp("s"))
    value = stream_of(OUTPUTS, key=["a", None, "c"], event_time=times, note=["x", "y", "z"])
    assert [(item.key, item.event_time_ms) for item in items(value)] == [
        (b"a", 1_700_000_000_000),
        (None, None),
        (b"c", 2_000),
    ]


def test_a_map_without_features_gives_its_means_where_these_were_calibrated() -> None:
    arrays = {name: OUTPUTS[name] for name in ("logits", "feature_map")}
    shapes = OutputShapes((5,), 4, (4, 2, 3), are_means=True, needs_features=True)
    (first, *_) = outputs(stream_of(arrays), shapes)
    assert first.features is not None
    np.testing.assert_allclose(first.features, OUTPUTS["feature_map"][0].mean(axis=(1, 2)), 1e-6)
    # Maxima and means of absolute values do not say what the means are.
    assert "'features'" in refused(stream_of(arrays, "channels"), shapes).error


def test_attention_is_a_map_of_one_dimension() -> None:
    arrays = {"logits": OUTPUTS["logits"], "feature_map": np.eye(3, 6, dtype=np.float32) / 2}
    shapes = OutputShapes((5,), None, (6,))
    assert [one.nap for one in outputs(stream_of(arrays, "metadata"), shapes)] == [0.5] * 3
    assert "attention" in refused(stream_of(OUTPUTS, "channels"), shapes).error


def test_a_batch_that_was_sliced() -> None:
    batch = batch_of(some_outputs(9)).slice(4, 3)
    whole, part = outputs(stream_of(some_outputs(9))), outputs(arrow_stream_of([batch]))
    assert [one.sha256 for one in part] == [one.sha256 for one in whole[4:7]]


def bad_row(name: str, value: Any) -> bytes:
    """Three rows, of which the second has another value in a column."""
    batch = batch_of(OUTPUTS, "metadata")
    rows = batch.column(name).to_pylist()
    field = pa.field(name, pa.list_(pa.float32()), metadata=batch.schema.field(name).metadata)
    column = pa.array([rows[0], value, rows[2]], field.type)
    return arrow_stream_of([batch.set_column(batch.schema.names.index(name), field, column)])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("logits", [1.0] * 4, "logits has 4 values, expected 5"),
        ("logits", [], "logits has 0 values, expected 5"),
        ("logits", None, "logits is null"),
        ("features", [1.0] * 400, "features has 400 values, expected 4"),
        ("features", None, "features is null"),
        ("feature_map", [1.0] * 23, "feature_map has 23 values, expected 24"),
        ("feature_map", None, "feature_map is null"),
    ],
)
def test_a_bad_row_spoils_itself_alone(name: str, value: Any, error: str) -> None:
    first, second, third = items(bad_row(name, value))
    assert first.output is not None
    assert third.output is not None
    assert (second.output, second.status, second.error) == (None, Status.BAD_BATCH, error)
    expected = outputs(stream_of(OUTPUTS, "metadata"))
    assert [first.output.sha256, third.output.sha256] == [expected[0].sha256, expected[2].sha256]


def test_a_list_within_that_is_null() -> None:
    batch = batch_of(OUTPUTS)
    rows = OUTPUTS["feature_map"].tolist()
    rows[1][2] = None
    kind = batch.column("feature_map").type
    value = arrow_stream_of([batch.set_column(2, "feature_map", pa.array(rows, kind))])
    first, second, third = items(value)
    assert (second.status, second.error) == (
        Status.BAD_BATCH,
        "feature_map holds a list that is null",
    )
    expected = outputs(stream_of(OUTPUTS))
    assert [one.output and one.output.nap for one in (first, third)] == [
        expected[0].nap,
        expected[2].nap,
    ]


@pytest.mark.parametrize("name", ["logits", "features", "feature_map"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, None])
def test_what_is_not_finite_has_no_prior(name: str, value: float | None) -> None:
    row = OUTPUTS[name][1].ravel().tolist()
    found = outputs(bad_row(name, [value, *row[1:]]))
    assert [np.isfinite(one.nap) for one in found] == [True, False, True]


def test_float64_beyond_float32_is_not_finite() -> None:
    arrays = {name: array.astype(np.float64) for name, array in OUTPUTS.items()}
    arrays["logits"][1, 0] = 1e300
    assert [np.isfinite(one.nap) for one in outputs(stream_of(arrays))] == [True, False, True]


def test_means_of_absolute_values_below_zero_are_none() -> None:
    batch = batch_of(OUTPUTS, "channels")
    means = np.abs(OUTPUTS["feature_map"]).mean(axis=(2, 3))
    means[0, 1], means[2, 0] = -0.1, -np.inf
    value = arrow_stream_of([batch.set_column(3, "channel_mean", fixed(means))])
    first, second, third = items(value)
    assert (first.status, first.error) == (
        Status.BAD_BATCH,
        "channel_mean is negative: send the mean of absolute activations",
    )
    assert second.output is not None
    assert third.output is not None
    assert [np.isfinite(one.output.nap) for one in (second, third) if one.output] == [True, False]


def without(*names: str) -> bytes:
    return stream_of({name: array for name, array in OUTPUTS.items() if name not in names})


def changed(name: str, array: NDArray[Any] | pa.Array, form: str = "nested") -> bytes:
    batch = batch_of(OUTPUTS, form)
    column = array if isinstance(array, pa.Array) else fixed(array)
    return arrow_stream_of([batch.set_column(batch.schema.names.index(name), name, column)])


def with_shape(shape: str | None) -> bytes:
    flat = lists(OUTPUTS["feature_map"].reshape(3, -1))
    field = pa.field("feature_map", flat.type, metadata=None if shape is None else {"shape": shape})
    batch = batch_of({name: OUTPUTS[name] for name in ("logits", "features")})
    return arrow_stream_of([batch.append_column(field, flat)])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (
            lambda: without("logits"),
            "no column 'logits', as the outputs of a model have (columns: ",
        ),
        (lambda: without("feature_map"), "no column 'feature_map', nor both 'channel_max'"),
        (lambda: without("features"), "no column 'features', which the calibration's scores take"),
        (
            lambda: changed("logits", pa.array([1, 2, 3])),
            "column 'logits' is int64, expected lists",
        ),
        (lambda: changed("logits", lists(np.ones((3, 5), int))), "'logits' is list<item: int64>"),
        (lambda: changed("features", pa.array([[[1.0]]] * 3)), "'features' is list<item: list"),
        (lambda: changed("feature_map", np.ones((3, 4, 3, 2), np.float32)), "shape [4, 3, 2]"),
        (lambda: changed("feature_map", np.ones((3, 4, 2, 3, 1), np.float32)), "[C, H, W] or [T]"),
        (lambda: changed("feature_map", np.ones((3, 4, 6), np.float32)), "[C, H, W] or [T]"),
        (lambda: changed("feature_map", np.ones((3, 24), np.float32)), "says no shape"),
        (lambda: with_shape(None), "says no shape"),
        (lambda: with_shape("[4, 2"), "says no shape"),
        (lambda: with_shape('{"a": 1}'), "says no shape"),
        (lambda: with_shape("[4, 2, 3.0]"), "says no shape"),
        (lambda: with_shape("[4, 6, 1]"), "has the shape [4, 6, 1], expected [4, 2, 3]"),
        (lambda: with_shape("[-4, -2, 3]"), "expected [C, H, W] or [T]"),
        (lambda: with_shape("[24]"), "has the shape [24], expected [4, 2, 3]"),
        (lambda: b"\xff" * 100, "not a valid Arrow IPC stream"),
        (jpeg, "not a valid Arrow IPC stream"),
        (lambda: arrow_stream({"image": [jpeg()]}), "no column 'logits'"),
        (lambda: stream_of(OUTPUTS)[:-200], "not a valid Arrow IPC stream"),
    ],
)
def test_columns_that_are_not_as_expected(make: Callable[[], bytes], error: str) -> None:
    found = refused(make())
    assert found.status is Status.BAD_BATCH
    assert error in found.error


def test_a_permuted_tensor_is_refused() -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3, 4), permutation=[2, 0, 1])
    flat = np.moveaxis(OUTPUTS["feature_map"], 1, 3).reshape(3, 24)
    tensors = pa.ExtensionArray.from_storage(kind, fixed(np.ascontiguousarray(flat)))
    assert "permutation" in refused(changed("feature_map", tensors)).error


def test_several_maps_are_sent_by_their_channels() -> None:
    shapes = OutputShapes((5,), 4, (4, 0, 0), is_several=True)
    assert "several maps" in refused(stream_of(OUTPUTS), shapes).error
    assert len(outputs(stream_of(OUTPUTS, "channels"), shapes)) == 3


def test_a_shape_that_promises_more_than_there_is() -> None:
    for shapes in (SHAPES, None):
        for shape in ("[2000000000, 2, 3]", "[4, 99999999999, 99999999999]"):
            assert f"{shape}: that is more than" in refused(with_shape(shape), shapes).error
    found = items(with_shape("[200000000, 2, 3]"), None)
    assert {item.error for item in found} == {"feature_map has 24 values, expected 1200000000"}


def test_compressed_dictionary_encoded_and_too_many() -> None:
    bomb = {**OUTPUTS, "logits": np.zeros((3, 2**20), np.float32)}
    sink = pa.BufferOutputStream()
    batch = batch_of(bomb)
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_batch(batch)
    value = sink.getvalue().to_pybytes()
    assert len(value) < 2**16
    assert "compressed" in refused(value).error
    legacy = arrow_stream_of(
        [batch_of(OUTPUTS)],
        {"ARROW:experimental_compression": "zstd"},
        metadata_version=pa.ipc.MetadataVersion.V4,
    )
    assert "compressed" in refused(legacy).error
    assert (
        "dictionary"
        in refused(stream_of(OUTPUTS, key=pa.array(["a"] * 3).dictionary_encode())).error
    )
    found = read_outputs(stream_of(OUTPUTS), LimitSettings(max_images_per_message=2), SHAPES)
    assert isinstance(found, Refusal)
    assert found.status is Status.TOO_LARGE
    none = {name: array[:0] for name, array in OUTPUTS.items()}
    assert refused(stream_of(none)).status is Status.EMPTY
    assert refused(stream_of(none), None).status is Status.EMPTY


def test_no_byte_that_is_changed_is_a_crash() -> None:
    good = stream_of(OUTPUTS, "metadata", key=["a", "b", "c"])
    random = np.random.default_rng(0)
    for _ in range(500):
        value = bytearray(good)
        for place in random.integers(0, len(good), 4):
            value[place] = random.integers(256)
        found = read_outputs(bytes(value), LIMITS, SHAPES)
        assert isinstance(found, Refusal) or len(found) <= LIMITS.max_images_per_message


def decode(value: bytes | None) -> Any:
    message = Message(TopicPartition("t", 0), 7, 1_000, b"key", value, (("part", b"x"),))
    return decode_message(
        message,
        LIMITS,
        kept_headers=("part",),
        ingest_time_ms=2_000,
        read_outputs=lambda found: read_outputs(found, LIMITS, SHAPES),
    )


def test_rows_of_a_message() -> None:
    value = bad_row("logits", None)
    rows = decode(value)
    columns = rows.columns
    assert columns["status"] == [Status.OK, Status.BAD_BATCH, Status.OK]
    assert columns["error"] == [None, "logits is null", None]
    assert columns["format"] == ["outputs", None, "outputs"]
    assert columns["width"] == columns["height"] == [None] * 3
    assert columns["key"] == [b"key"] * 3
    assert columns["sha256"] == [rows.pixels[0].sha256, None, rows.pixels[1].sha256]
    assert columns["headers"] == [(("part", b"x"),)] * 3
    # The dead letter is the message: a row alone has no bytes.
    assert [(failed.origin.index, failed.payload) for failed in rows.failed] == [(1, value)]


@pytest.mark.parametrize(
    ("value", "status"), [(None, "tombstone"), (b"", "empty"), (jpeg(), "bad_batch")]
)
def test_messages_that_are_none(value: bytes | None, status: str) -> None:
    rows = decode(value)
    assert rows.columns["status"] == [status]
    assert rows.failed[0].payload == value
