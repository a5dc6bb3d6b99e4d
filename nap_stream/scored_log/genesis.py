"""The genesis marker: where a partition's chain starts, fixed once."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from nap_stream.errors import ChainBrokenError
from nap_stream.records import TopicPartition

KIND = "nap-stream scored log genesis"
VERSION = 1

_TYPES: dict[str, type] = {
    "kind": str,
    "version": int,
    "topic": str,
    "partition": int,
    "offset": int,
    "writer_id": str,
    "created_time_ms": int,
}


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first offset of a partition's chain; ``created_time_ms`` is since the epoch, UTC."""

    topic: str
    partition: int
    offset: int
    writer_id: str
    created_time_ms: int


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
    )


def _checked_tree(tree: Any, partition: TopicPartition) -> dict[str, Any]:
    if not isinstance(tree, dict) or tree.keys() != _TYPES.keys():
        raise ValueError(f"expected the keys {sorted(_TYPES)}")
    for name, kind in _TYPES.items():
        if type(tree[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}: {tree[name]!r}")
    if (tree["kind"], tree["version"]) != (KIND, VERSION):
        raise ValueError(f"kind {tree['kind']!r}, version {tree['version']}")
    if (tree["topic"], tree["partition"]) != (partition.topic, partition.partition):
        raise ValueError(f"it belongs to {tree['topic']}/{tree['partition']}")
    if tree["offset"] < 0:
        raise ValueError(f"a negative offset: {tree['offset']}")
    return tree
