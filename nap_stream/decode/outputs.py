"""What a model that runs elsewhere gave, as columns of Arrow: a row an image. It is not trusted.

``logits`` and ``features`` are lists of float16, float32 or float64. The map stands in
``feature_map``: fixed-size lists within each other, C of H of W; a ``fixed_shape_tensor``; or one
list with the metadata ``shape`` of its field, as ``[C, H, W]``. A Vision Transformer's attention
over the patch tokens has the shape ``[T]``. In place of a map, ``channel_max`` and
``channel_mean`` are each channel's maximum and its mean of absolute activations.

What has another width, is null or missing is refused before anything is copied, so that memory
stays bounded by the message.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from nap_stream.core.prior import attention_prior, channel_prior, nap
from nap_stream.decode.arrow import BatchError, keys_and_times, no_column, read_rows
from nap_stream.decode.picture import Refusal
from nap_stream.records import ModelOutput, SourceImage, Status
from nap_stream.settings.schema import LimitSettings

COLUMNS: Final = ("logits", "features", "feature_map", "channel_max", "channel_mean")
_MAP_DIMENSIONS: Final = 3
_MOST_VALUES: Final = 2**31
_DIMENSIONS: Final = (1, _MAP_DIMENSIONS)
"""Of an attention, and of a map."""
_FLOATS: Final = (pa.float16(), pa.float32(), pa.float64())
_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)

_NEGATIVE: Final = "channel_mean is negative: send the mean of absolute activations"

Check = Callable[[NDArray[np.float32], NDArray[np.float32] | None], Sequence[str | None]]
"""Finite logits (n, K) as they came, and features (n, D) → for each row what is wrong with them."""
ToLogits = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class OutputShapes:
    """What each row must be like.

    ``widths`` are those that logits may have, the model's own first. ``features`` is D, null where
    it is not known. ``map_shape`` is (C, H, W), with H and W of 0 where they are not known, or, of
    attention, (T,). ``is_several``: the channels are those of several maps, or of several rows of a
    map. ``are_means``: where there is no column of features, the map's means are taken.
    """

    widths: tuple[int, ...]
    features: int | None
    map_shape: tuple[int, ...]
    is_several: bool = False
    are_means: bool = False
    needs_features: bool = False

    @property
    def takes_means(self) -> bool:
        """Whether a map without a column of features gives them."""
        return self.are_means and len(self.map_shape) == _MAP_DIMENSIONS


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Those of the rows of a batch that are as they must be, n of them.

    ``rows`` are their numbers, ``logits`` are float32 (n, K), as they came, ``features`` float32
    (n, D) or null, ``nap`` float32 (n,), NaN where a value is not finite. ``problems`` say what was
    wrong with the other rows, by number.
    """

    rows: NDArray[np.int64]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None
    nap: NDArray[np.float32]
    sha256: tuple[str, ...]
    problems: dict[int, str]


def read_outputs(
    value: bytes,
    limits: LimitSettings,
    shapes: OutputShapes | None,
    *,
    check_rows: Check | None = None,
    to_logits: ToLogits = lambda logits: logits,
) -> tuple[SourceImage, ...] | Refusal:
    """Read the rows of an Arrow IPC stream. Never raises for what the bytes hold.

    Without ``shapes``, they are those of the first row. ``check_rows`` says what is wrong with rows
    of the right shape; ``to_logits`` makes logits of what the model gives.

    Returns:
        At least one row; a refusal ``bad_batch``, ``too_large`` (more rows than
        ``limits.max_images_per_message``) or ``empty`` (no row).
    """
    check = partial(check_columns, shapes=shapes)
    make = partial(_source_images, shapes=shapes, check_rows=check_rows, to_logits=to_logits)
    return read_rows(value, limits, COLUMNS, check, make)


def _source_images(
    batch: pa.RecordBatch,
    shapes: OutputShapes | None,
    check_rows: Check | None,
    to_logits: ToLogits,
) -> Iterator[SourceImage]:
    if not batch.num_rows:
        return
    outputs = outputs_of(batch, shapes or shapes_of(batch))
    problems = dict(outputs.problems)
    finite = np.flatnonzero(np.isfinite(outputs.nap))
    features = outputs.features
    if check_rows is not None and len(finite):
        said = check_rows(outputs.logits[finite], None if features is None else features[finite])
        found = zip(outputs.rows[finite].tolist(), said, strict=True)
        problems |= {row: problem for row, problem in found if problem}
    logits = to_logits(outputs.logits)
    number_of = {int(row): number for number, row in enumerate(outputs.rows)}
    for row, own in enumerate(keys_and_times(batch)):
        if row in problems:
            yield SourceImage(None, Status.BAD_BATCH, problems[row], **own)
            continue
        number = number_of[row]
        output = ModelOutput(
            logits[number],
            None if features is None else features[number],
            float(outputs.nap[number]),
            outputs.sha256[number],
        )
        yield SourceImage(None, **own, output=output)


def check_columns(schema: pa.Schema, shapes: OutputShapes | None = None) -> None:
    """Refuse columns that are not what `outputs_of` takes.

    Raises:
        BatchError: One is missing, or is of another type or shape.
    """
    names = set(schema.names)
    if "logits" not in names:
        raise no_column("'logits', as the outputs of a model have", schema)
    map_shape = shape_of_map(schema) if "feature_map" in names else None
    if map_shape is None and not {"channel_max", "channel_mean"} <= names:
        raise no_column("'feature_map', nor both 'channel_max' and 'channel_mean'", schema)
    for name in names.intersection(COLUMNS) - {"feature_map"}:
        _require_floats(name, schema.field(name).type)
    if shapes is None:
        return
    if map_shape is None and len(shapes.map_shape) != _MAP_DIMENSIONS:
        raise BatchError("the calibration's prior is of attention: send it as 'feature_map'")
    if map_shape is not None:
        _require_map(map_shape, shapes)
    has_means = shapes.takes_means and map_shape is not None
    if shapes.needs_features and "features" not in names and not has_means:
        raise no_column("'features', which the calibration's scores take", schema)


def _require_map(found: tuple[int, ...], shapes: OutputShapes) -> None:
    expected = shapes.map_shape
    if shapes.is_several and len(expected) == _MAP_DIMENSIONS:
        raise BatchError(
            "the calibration's prior is of several maps, or rows of a map: send 'channel_max' and "
            f"'channel_mean' of all {expected[0]} channels in place of 'feature_map'"
        )
    is_known = all(expected)
    if found != expected if is_known else (len(found) != len(expected) or found[0] != expected[0]):
        shown = list(expected) if is_known else f"[{expected[0]}, H, W]"
        raise BatchError(f"'feature_map' has the shape {list(found)}, expected {shown}")


def _require_floats(name: str, kind: pa.DataType) -> None:
    is_list = any(check(kind) for check in _LISTS)
    if not is_list or kind.value_type not in _FLOATS:
        raise BatchError(
            f"column {name!r} is {str(kind)[:100]}, expected lists of float16, float32 or float64"
        )


def shape_of_map(schema: pa.Schema) -> tuple[int, ...]:
    """The shape of the column ``feature_map``: (C, H, W) or, of attention, (T,).

    Raises:
        BatchError: It says none, or is of another type.
    """
    field = schema.field("feature_map")
    kind = field.type
    if isinstance(kind, pa.FixedShapeTensorType):
        if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
            raise BatchError("'feature_map' has a permutation: send it as it lies, [C, H, W]")
        sizes, kind = list(kind.shape), kind.storage_type
    elif pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        sizes = [kind.list_size]
        while pa.types.is_fixed_size_list(kind.value_type):
            kind = kind.value_type
            sizes.append(kind.list_size)
    else:
        sizes = _shape_in_metadata(field)
    _require_floats("feature_map", kind)
    if len(sizes) not in _DIMENSIONS or min(sizes) < 1:
        raise BatchError(f"'feature_map' has the shape {sizes[:4]}, expected [C, H, W] or [T]")
    if prod(sizes) >= _MOST_VALUES:
        raise BatchError(f"'feature_map' has the shape {sizes}: that is more than a list may hold")
    if field.type == kind and pa.types.is_fixed_size_list(kind) and kind.list_size != prod(sizes):
        raise BatchError(f"'feature_map' has {kind.list_size} values, and the shape {sizes}")
    return tuple(sizes)


def _shape_in_metadata(field: pa.Field) -> list[int]:
    text = (field.metadata or {}).get(b"shape", b"")[:100]
    try:
        sizes = json.loads(text)
    except ValueError:
        sizes = None
    if not isinstance(sizes, list) or not all(type(size) is int for size in sizes):
        raise BatchError(
            "'feature_map' says no shape: set the metadata shape of its field, as in "
            '{"shape": "[512, 7, 7]"}, or send fixed-size lists within each other'
        )
    return sizes


def shapes_of(batch: pa.RecordBatch) -> OutputShapes:
    """The shapes that a batch of at least one row has, by its first row.

    Raises:
        BatchError: See `check_columns`; or the first row is null somewhere.
    """
    check_columns(batch.schema)
    names = set(batch.schema.names)

    def width(name: str) -> int:
        found = pc.list_value_length(batch.column(name).slice(0, 1))[0].as_py()
        if not found:
            raise BatchError(f"{name} is null or empty in the first row")
        return int(found)

    is_map = "feature_map" in names
    shape = shape_of_map(batch.schema) if is_map else (width("channel_max"), 0, 0)
    has_column = "features" in names
    are_means = is_map and len(shape) == _MAP_DIMENSIONS and not has_column
    return OutputShapes(
        (width("logits"),),
        width("features") if has_column else shape[0] if are_means else None,
        shape,
        are_means=are_means,
        needs_features=has_column,
    )


def outputs_of(batch: pa.RecordBatch, shapes: OutputShapes) -> Outputs:
    """Take the outputs of a batch's rows, whose columns `check_columns` has checked."""
    problems: dict[int, str] = {}
    columns = {name: _storage(batch.column(name)) for name in _used(batch.schema, shapes)}
    map_shape = shape_of_map(batch.schema) if "feature_map" in columns else ()
    widths = {
        "logits": _width_of_logits(columns["logits"], shapes.widths),
        "features": shapes.features or 0,
        "feature_map": prod(map_shape),
        **dict.fromkeys(("channel_max", "channel_mean"), shapes.map_shape[0]),
    }
    for name, column in columns.items():
        is_nested = column.type.value_type not in _FLOATS
        _find_problems(name, column, map_shape[0] if is_nested else widths[name], problems)
    rows = np.array([row for row in range(batch.num_rows) if row not in problems], np.int64)
    values: dict[str, NDArray[Any]] = {}
    whole = np.ones(len(rows), np.bool_)
    for name, column in columns.items():
        values[name], is_whole = _values(column, rows, widths[name])
        for row in rows[~is_whole].tolist():
            problems.setdefault(row, f"{name} holds a list that is null")
        whole &= is_whole
    if "channel_mean" in values:
        given = values["channel_mean"]
        is_negative = ((given < 0) & np.isfinite(given)).any(axis=1)
        for row in rows[is_negative].tolist():
            problems.setdefault(row, _NEGATIVE)
        whole &= ~is_negative
    values = {name: own[whole] for name, own in values.items()}
    takes_means = shapes.takes_means and "features" not in values
    prior, means = _prior(values, map_shape, takes_means=takes_means)
    logits = _float32(values["logits"])
    finite = np.isfinite(logits).all(axis=1)
    features = _float32(values["features"]) if "features" in values else None
    if features is not None:
        finite &= np.isfinite(features).all(axis=1)
    elif takes_means:
        features = means
    sha256 = tuple(
        hashlib.sha256(b"".join(own[number].tobytes() for own in values.values())).hexdigest()
        for number in range(len(logits))
    )
    prior = np.where(finite, prior, np.float32(np.nan))
    return Outputs(rows[whole], logits, features, prior, sha256, problems)


def _used(schema: pa.Schema, shapes: OutputShapes) -> list[str]:
    """The columns that scores are made of. Features of which nothing is known are not."""
    unused = {"channel_max", "channel_mean"} if "feature_map" in schema.names else set()
    if shapes.features is None:
        unused.add("features")
    return [name for name in COLUMNS if name in schema.names and name not in unused]


def _storage(column: Any) -> Any:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _width_of_logits(column: Any, widths: tuple[int, ...]) -> int:
    """The width that the first row has of those that are possible."""
    lengths = pc.list_value_length(column).to_pylist()
    return next((length for length in lengths if length in widths), widths[0])


def _find_problems(name: str, column: Any, width: int, problems: dict[int, str]) -> None:
    """Note the rows that are null, or of another width."""
    lengths = pc.list_value_length(column).cast(pa.int64())
    fits = pc.fill_null(pc.equal(lengths, width), fill_value=False)
    for row in np.flatnonzero(~fits.to_numpy(zero_copy_only=False)).tolist():
        length = lengths[row].as_py()
        said = "is null" if length is None else f"has {length} values, expected {width}"
        problems.setdefault(row, f"{name} {said}")


def _values(
    column: Any, rows: NDArray[np.int64], width: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values of rows that are not null, (n, width) in their own dtype, null ones NaN.

    Last comes in which rows no list within is null.
    """
    lists = column if len(rows) == len(column) else column.take(pa.array(rows))
    whole = np.ones(len(rows), np.bool_)
    inner = lists.flatten()
    while pa.types.is_fixed_size_list(inner.type):
        is_valid = inner.is_valid().to_numpy(zero_copy_only=False)
        whole &= is_valid.reshape(len(rows), len(inner) // max(1, len(rows))).all(axis=1)
        size = inner.type.list_size
        # flatten() leaves out what is null, and all behind it would be of another row.
        inner = inner.values.slice(inner.offset * size, len(inner) * size)
    return inner.to_numpy(zero_copy_only=False).reshape(len(rows), width), whole


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _prior(
    values: dict[str, NDArray[Any]], map_shape: tuple[int, ...], *, takes_means: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """NAP, (n,), NaN where a value is not finite; a map's means by channel, (n, C), if asked."""
    if not map_shape:
        peak, mean = (
            torch.from_numpy(_float32(values[f"channel_{name}"])) for name in ("max", "mean")
        )
        # A mean of absolute activations is not negative.
        is_possible = (peak.isfinite() & (mean >= 0)).all(dim=1)
        return channel_prior(peak, mean).where(is_possible, torch.nan).numpy(), None
    found = torch.from_numpy(_float32(values["feature_map"]))
    if len(map_shape) != _MAP_DIMENSIONS:
        is_finite = found.isfinite().all(dim=1)
        return attention_prior(found).where(is_finite, torch.nan).numpy(), None
    maps = found.reshape(len(found), *map_shape)
    # It is NaN by itself where an activation is not finite.
    return nap(maps).numpy(), maps.mean(dim=(2, 3)).numpy() if takes_means else None
