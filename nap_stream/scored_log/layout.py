"""How the files of the scored log are named.

Names that begin with ``_`` or ``.`` are hidden from Parquet readers by convention. All paths
are relative to the log's root, with ``/`` between their parts.
"""

import re
from uuid import uuid4

from nap_stream.errors import ConfigError
from nap_stream.records import TopicPartition

GENESIS_NAME = "_genesis.json"

_MAX_OFFSET = 2**63 - 1
_MAX_PARTITION = 2**31 - 1
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_TOPIC_FOLDER = re.compile(r"topic=(.+)")
_PARTITION_FOLDER = re.compile(r"partition=(0|[1-9][0-9]{0,9})")
_SEGMENT = re.compile(r"([0-9]{20})\.parquet")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def _is_topic(topic: str) -> bool:
    return _TOPIC.fullmatch(topic) is not None and topic not in {".", "..", _HIVE_NULL}


def check_topic(topic: str) -> None:
    """Refuse a topic whose name cannot stand as a hive key in a folder's name.

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


def topic_folder(topic: str) -> str:
    """The folder of a topic.

    Raises:
        ConfigError: The topic cannot be a folder's name.
    """
    check_topic(topic)
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
