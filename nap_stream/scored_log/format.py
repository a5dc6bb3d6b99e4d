"""How the files of the scored log are named, and what a row holds.

Names that begin with ``_`` or ``.`` are hidden from Parquet readers by convention. All paths are
relative to the log's root, with ``/`` between their parts.

A row is one image of one message; (topic, partition, offset, index) names it for ever. Rows
stand in Kafka order. Topic and partition are no columns of the files: they are the hive keys of
the folders (``topic=…/partition=…``), so that every Parquet reader that knows hive partitioning
(pyarrow.dataset, DuckDB, Spark) sees them exactly once. A file on its own names both in its
footer (`nap_stream.scored_log.footer`).

``status`` is ``ok`` for a scored image, else it says what was wrong, and ``error`` says it for
people. The columns from ``class_id`` to ``is_ood``, and ``max_logit``, are null exactly where
``status`` is not ``ok``. Those of `OPTIONAL_SCORES` are null also where the run did not compute
them. All scores, ``fused`` among them, are higher for in-distribution images; ``ood_p_value`` is
small for out-of-distribution ones, and so is ``calibration_p_value``, which is null without a
baseline. Scores are stored in double precision, so that a verdict can be recomputed from its row
exactly. Each field's metadata ``doc`` says what it holds and its unit.

The columns have a version, which stands in the footer. Version 6 is written. Version 5 lacks
``calibration_p_value``, version 4 ``decode_warning`` and ``source_uri`` besides, version 3
``fdbd``, ``mahalanobis``, ``gen`` and ``nci`` too; they are read as if these were null in every
row. A chain may begin in one version and go on in a later one; one file is of one version.
"""

import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition

GENESIS_NAME = "_genesis.json"
SCHEMA_VERSION = 6
"""Of the columns and of the footer, as they are written. `SCHEMAS` has those that are read."""
EARLIEST_TIME_MS = -62_135_596_800_000
EARLIEST_ROW_MS = -2_208_988_800_000
LATEST_TIME_MS = 253_402_300_799_999
_SINCE_VERSION_4 = ("fdbd", "mahalanobis", "gen", "nci")
_SINCE_VERSION_5 = ("decode_warning", "source_uri")
_SINCE_VERSION_6 = ("calibration_p_value",)
OPTIONAL_SCORES = (
    *("react", "ash", "scale", "dice", "knn"),
    *(*_SINCE_VERSION_4, *_SINCE_VERSION_6),
)
"""Columns of scores that a run may leave out; null then, whatever the status."""

SCORE_COLUMNS = (
    "class_id",
    "class_name",
    "confidence",
    "energy",
    "nap",
    "fused",
    "ood_p_value",
    "is_ood",
    "max_logit",
    *OPTIONAL_SCORES,
)
"""Null where the status is not ok; but for `OPTIONAL_SCORES`, nowhere else."""
DICTIONARY_COLUMNS = [
    "key",
    "model_fingerprint",
    "calibration_fingerprint",
    "class_id",
    "class_name",
    "status",
    "error",
    "width",
    "height",
    "format",
    "headers.list.element.name",
    "headers.list.element.value",
    "decode_warning",
]
"""Columns whose values repeat: Parquet stores each value once a segment."""

_TEXTS = ("status", "error", "class_name", "format", "sha256", "decode_warning", "source_uri")
_TIME = pa.timestamp("ms", tz="UTC")
_HEADER = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary())])
_NO_STATISTICS = ("error", "sha256", "headers", "decode_warning", "source_uri")

_MAX_OFFSET = 2**63 - 1
_MAX_PARTITION = 2**31 - 1
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_TOPIC_FOLDER = re.compile(r"topic=(.+)")
_PARTITION_FOLDER = re.compile(r"partition=(0|[1-9][0-9]{0,9})")
_SEGMENT = re.compile(r"([0-9]{20})\.parquet")
_SEAL = re.compile(r"_pruned\.([0-9]{20})\.note")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def _is_topic(topic: str) -> bool:
    return _TOPIC.fullmatch(topic) is not None and topic not in {".", "..", _HIVE_NULL}


def topic_folder(topic: str) -> str:
    """The folder of a topic, whose name is a hive key.

    Raises:
        ConfigError: It is not 1 to 249 of ``a-z A-Z 0-9 . _ -``, or it is ``.``, ``..`` or
            hive's name for null.
    """
    if not _is_topic(topic):
        raise ConfigError(
            f"{topic!r} cannot name a topic of the scored log",
            "kafka.topic",
            "Use 1 to 249 letters, digits, dots, underscores and hyphens; not '.' or '..'",
        )
    return f"topic={topic}"


def partition_folder(partition: TopicPartition) -> str:
    """The folder of a partition's chain.

    Raises:
        ConfigError: The topic cannot be a folder's name.
    """
    return f"{topic_folder(partition.topic)}/partition={partition.partition}"


def genesis_path(partition: TopicPartition) -> str:
    """The marker that fixes where a partition's chain starts."""
    return f"{partition_folder(partition)}/{GENESIS_NAME}"


def segment_name(base_offset: int) -> str:
    """The file's name of the segment that begins at ``base_offset``."""
    return f"{base_offset:020d}.parquet"


def seal_path(partition: TopicPartition, start_offset: int) -> str:
    """What says that the rows from ``start_offset`` on were pruned."""
    return f"{partition_folder(partition)}/_pruned.{start_offset:020d}.note"


def parse_seal_name(name: str) -> int | None:
    """The first offset that a seal covers, by its file's name; None where it names none."""
    found = _SEAL.fullmatch(name)
    return None if found is None or int(found[1]) > _MAX_OFFSET else int(found[1])


def segment_path(partition: TopicPartition, base_offset: int) -> str:
    """The segment that begins at ``base_offset``."""
    return f"{partition_folder(partition)}/{segment_name(base_offset)}"


def temporary_name() -> str:
    """A fresh hidden name for a file that is being written."""
    return f".{uuid4().hex}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary_name`."""
    return _TEMPORARY.fullmatch(name) is not None


def is_hidden(name: str) -> bool:
    """Whether Parquet readers pass over a file or folder of this name."""
    return name.startswith(("_", "."))


def parse_topic_folder(name: str) -> str | None:
    """The topic of a folder's name; None if it is no topic's folder."""
    match = _TOPIC_FOLDER.fullmatch(name)
    return match[1] if match is not None and _is_topic(match[1]) else None


def parse_partition_folder(name: str) -> int | None:
    """The partition of a folder's name; None if it is no partition's folder."""
    match = _PARTITION_FOLDER.fullmatch(name)
    if match is None or int(match[1]) > _MAX_PARTITION:
        return None
    return int(match[1])


def parse_segment_name(name: str) -> int | None:
    """The base offset of a file's name; None if it is no segment's."""
    match = _SEGMENT.fullmatch(name)
    if match is None or int(match[1]) > _MAX_OFFSET:
        return None
    return int(match[1])


def parse_segment_path(path: str) -> tuple[TopicPartition, int]:
    """The partition and base offset of a segment's path.

    Raises:
        ValueError: It is not the path of a segment, relative to the root.
    """
    parts = path.split("/")
    if len(parts) == 3:  # noqa: PLR2004 (topic, partition, file)
        topic = parse_topic_folder(parts[0])
        partition = parse_partition_folder(parts[1])
        base_offset = parse_segment_name(parts[2])
        if topic is not None and partition is not None and base_offset is not None:
            return TopicPartition(topic, partition), base_offset
    raise ValueError(f"not the path of a segment, relative to the log's root: {path!r}")


def _column(name: str, kind: Any, doc: str, *, nullable: bool = False) -> Any:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


def _score(name: str, kind: Any, doc: str) -> Any:
    return _column(name, kind, f"{doc} Null where status is not ok.", nullable=True)


def _optional_score(name: str, doc: str) -> Any:
    return _score(name, pa.float64(), f"{doc}, higher = in-distribution. Null if not computed.")


SCHEMA = pa.schema(
    [
        _column("offset", pa.int64(), "Kafka offset of the message."),
        _column("index", pa.int32(), "Index of the image in its message, from 0."),
        _column("key", pa.binary(), "Message key as it came, or null.", nullable=True),
        _column("event_time", _TIME, "Event time: the message's or the image's own timestamp."),
        _column("ingest_time", _TIME, "When the message was read from Kafka."),
        _column("scored_time", _TIME, "When the image was scored or refused."),
        _column("model_fingerprint", pa.string(), "Weights, factory and preprocessing, hex."),
        _column("calibration_fingerprint", pa.string(), "The calibration artifact, hex."),
        _column("status", pa.string(), "ok, or why there are no scores."),
        _column("error", pa.string(), "What was wrong, for people; null if ok.", nullable=True),
        _score("class_id", pa.int64(), "Predicted class, index of the largest logit."),
        _score("class_name", pa.string(), "Predicted class, by name."),
        _score("confidence", pa.float64(), "MSP: largest softmax probability, 0 to 1."),
        _score("energy", pa.float64(), "logsumexp of the logits, higher = in-distribution."),
        _score("nap", pa.float64(), "NAP score (arXiv 2402.18162), higher = in-distribution."),
        _score(
            "fused", pa.float64(), "Score of the calibration's method, higher = in-distribution."
        ),
        _score(
            "ood_p_value",
            pa.float64(),
            "Conformal p-value of fused, small = OOD; "
            "one- or two-sided, per class or not, as the calibration says.",
        ),
        _score("is_ood", pa.bool_(), "Whether ood_p_value <= alpha of the calibration."),
        _column("width", pa.int64(), "Width in the file, pixels; null if unknown.", nullable=True),
        _column(
            "height", pa.int64(), "Height in the file, pixels; null if unknown.", nullable=True
        ),
        _column(
            "format",
            pa.string(),
            "What the bytes were read as (jpeg, png, ..., raw, outputs); null if unknown.",
            nullable=True,
        ),
        _column(
            "sha256",
            pa.string(),
            "SHA-256 of the image's bytes, or of a model's outputs as they came, hex.",
            nullable=True,
        ),
        _column(
            "headers",
            pa.list_(pa.field("element", _HEADER, nullable=False)),
            "Kept message headers, in order, with repeats.",
        ),
        _score("max_logit", pa.float64(), "Largest logit, higher = in-distribution."),
        _optional_score("react", "ReAct (arXiv 2111.12797)"),
        _optional_score("ash", "ASH (arXiv 2209.09858)"),
        _optional_score("scale", "SCALE (arXiv 2310.00227)"),
        _optional_score("dice", "DICE (arXiv 2111.09805)"),
        _optional_score("knn", "KNN (arXiv 2204.06507), 2 minus the distance of unit vectors"),
        _optional_score("fdbd", "fDBD (arXiv 2312.11536)"),
        _optional_score(
            "mahalanobis", "By the Mahalanobis distance of unit features, one mean, Ledoit-Wolf"
        ),
        _optional_score("gen", "GEN (Liu et al., CVPR 2023)"),
        _optional_score("nci", "NCI (arXiv 2311.01479)"),
        _column(
            "decode_warning",
            pa.string(),
            "What the decoder found odd in an image that it read; null where it found nothing.",
            nullable=True,
        ),
        _column(
            "source_uri",
            pa.string(),
            "Where the image was fetched from, without credentials; null if it was in the message.",
            nullable=True,
        ),
        _score(
            "calibration_p_value",
            pa.float64(),
            "What ood_p_value would be without the baseline, by the calibration images. "
            "Null without a baseline.",
        ),
    ]
)
"""Version `SCHEMA_VERSION` of the columns of a segment's file, times in milliseconds UTC."""
STATISTICS_COLUMNS = [name for name in SCHEMA.names if name not in _NO_STATISTICS]
"""Columns of which Parquet notes the least and greatest value: a reader can skip files by them.
Nobody looks for a range of the others, whose values are long."""
_VERSION_5 = pa.schema([field for field in SCHEMA if field.name not in _SINCE_VERSION_6])
_VERSION_4 = pa.schema([field for field in _VERSION_5 if field.name not in _SINCE_VERSION_5])
SCHEMAS = {
    3: pa.schema([field for field in _VERSION_4 if field.name not in _SINCE_VERSION_4]),
    4: _VERSION_4,
    5: _VERSION_5,
    SCHEMA_VERSION: SCHEMA,
}
"""The columns of each version that is read. A file has exactly those of its own: its digest is of
them. What a reader finds missing in an earlier version is null."""


def storable_time_ms(time_ms: int) -> int:
    """Bring a time into years 1 to 9999, which is what every Parquet reader can show."""
    return min(max(time_ms, EARLIEST_TIME_MS), LATEST_TIME_MS)


def row_time_ms(time_ms: int) -> int:
    """Bring a row's time into years 1900 to 9999, which is what every Parquet reader reads.

    Spark 3 refuses a column with one time before 1900: calendars differ.
    """
    return min(max(time_ms, EARLIEST_ROW_MS), LATEST_TIME_MS)


def storable_text(text: str) -> str:
    r"""Write lone surrogates as ``\udcXX``: UTF-8, and so Parquet, has no form for them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


FINGERPRINTS = ("model_fingerprint", "calibration_fingerprint")
ROWS = pa.schema([field for field in SCHEMA if field.name not in FINGERPRINTS])
"""The columns of rows before a writer says which model and calibration they are of."""
# A schema makes new objects of its fields and types whenever it is asked for them.
_KINDS = {field.name: field.type for field in ROWS}
_TIMES = frozenset(name for name, kind in _KINDS.items() if kind == _TIME)


def rows_of(columns: Mapping[str, Any], count: int) -> pa.RecordBatch:
    """Lay columns out as rows.

    ``columns`` by name of `ROWS`, each of ``count`` values: an Arrow array, or a list of plain
    ones, with times in milliseconds since the epoch and headers as (name, value) pairs. Columns
    that may be null may be left out.

    Returns:
        A batch with exactly `ROWS`.
    """
    arrays = [_array(name, kind, columns.get(name), count) for name, kind in _KINDS.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


def _array(name: str, kind: pa.DataType, values: Any, count: int) -> pa.Array:
    if values is None or not count:
        return pa.nulls(count, kind)
    if isinstance(values, pa.Array):
        return _within_years(values) if name in _TIMES else values
    # Most columns have one value throughout a batch.
    if name != "headers" and values.count(values[0]) == count:
        return _repeated(name, kind, values[0], count)
    if name in _TIMES:
        # Event times come from producers and can be anything.
        if min(values) < EARLIEST_ROW_MS or max(values) > LATEST_TIME_MS:
            values = [row_time_ms(time_ms) for time_ms in values]
    elif name == "headers":
        values = [
            [{"name": storable_text(header), "value": value} for header, value in headers]
            for headers in values
        ]
    elif name in _TEXTS:
        values = [None if text is None else storable_text(text) for text in values]
    return pa.array(values, kind)


def _within_years(times: pa.Array) -> pa.Array:
    """Times as `row_time_ms` stores them, of an array in milliseconds."""
    whole = times.cast(pa.int64())
    bounded = pc.max_element_wise(whole, EARLIEST_ROW_MS, skip_nulls=False)
    return pc.min_element_wise(bounded, LATEST_TIME_MS, skip_nulls=False).cast(_TIME)


def _repeated(name: str, kind: pa.DataType, value: Any, count: int) -> pa.Array:
    if value is None:
        return pa.nulls(count, kind)
    if name in _TIMES:
        value = row_time_ms(value)
    elif name in _TEXTS:
        value = storable_text(value)
    return pa.repeat(pa.scalar(value, kind), count)


def with_fingerprints(rows: pa.Table, model: str, calibration: str) -> pa.Table:
    """Rows as a file has them: one model has scored all of them, one calibration judged them.

    ``rows`` have the columns of `ROWS`.

    Returns:
        A table with exactly `SCHEMA`.
    """
    own = dict(zip(FINGERPRINTS, (model, calibration), strict=True))
    arrays = [
        pa.repeat(pa.scalar(own[name]), rows.num_rows) if name in own else rows.column(name)
        for name in SCHEMA.names
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def parse_version(version: str) -> int:
    """A version as a segment's footer has it.

    Raises:
        ValueError: It is none of `SCHEMAS`.
    """
    known = {str(number): number for number in SCHEMAS}
    if version not in known:
        raise ValueError(
            f"schema version {version!r}; this program reads {', '.join(known)}: "
            "use the nap-stream that wrote it"
        )
    return known[version]
