"""The genesis marker: where a partition's chain starts, fixed once."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition

KIND = "nap-stream scored log genesis"
VERSION = 2

_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "version": (int,),
    "topic": (str,),
    "topic_id": (str, type(None)),
    "partition": (int,),
    "offset": (int,),
    "writer_id": (str,),
    "created_time_ms": (int,),
}
_SINCE_2 = {"topic_id"}


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first offset of a partition's chain; ``created_time_ms`` is since the epoch, UTC.

    ``topic_id`` is None where the broker has none, and in markers of version 1.
    """

    topic: str
    partition: int
    offset: int
    writer_id: str
    created_time_ms: int
    topic_id: str | None = None


def encode_genesis(genesis: Genesis) -> bytes:
    """The marker's file: one line of JSON."""
    tree = {"kind": KIND, "version": VERSION, **asdict(genesis)}
    return (json.dumps(tree, ensure_ascii=True) + "\n").encode("ascii")


def decode_genesis(content: bytes, partition: TopicPartition, where: str) -> Genesis:
    """Read a marker back, strictly.

    Raises:
        ChainBrokenError: It is malformed, of another version, or of another partition.
    """
    try:
        tree = _checked_tree(json.loads(content.decode("utf-8")), partition)
    except (ValueError, RecursionError) as error:
        raise ChainBrokenError(
            f"the genesis marker is not valid: {error}",
            where,
            "Run `nap-stream verify`; restore the marker from a backup",
        ) from error
    return Genesis(
        tree["topic"],
        tree["partition"],
        tree["offset"],
        tree["writer_id"],
        tree["created_time_ms"],
        tree.get("topic_id"),
    )


def _checked_tree(tree: Any, partition: TopicPartition) -> dict[str, Any]:
    if not isinstance(tree, dict) or not {"kind", "version"} <= tree.keys():
        raise ValueError("expected a JSON object with kind and version")
    if tree["kind"] != KIND or tree["version"] not in (1, VERSION):
        raise ValueError(f"kind {tree['kind']!r}, version {tree['version']!r}")
    expected = _TYPES.keys() - (_SINCE_2 if tree["version"] == 1 else set())
    if tree.keys() != expected:
        raise ValueError(f"expected the keys {sorted(expected)}")
    for name in expected:
        if type(tree[name]) not in _TYPES[name]:
            kinds = " or ".join(kind.__name__ for kind in _TYPES[name])
            raise ValueError(f"{name} is not of type {kinds}: {tree[name]!r}")
    if (tree["topic"], tree["partition"]) != (partition.topic, partition.partition):
        raise ValueError(f"it belongs to {tree['topic']}/{tree['partition']}")
    if tree["offset"] < 0:
        raise ValueError(f"a negative offset: {tree['offset']}")
    return tree
