"""The monitor's state as bytes, exact to the bit, and back.

A safetensors file of arrays; one of them is a JSON document. Nothing in it is executed when it is
read. Summaries that wait beyond a hole are left out: they are read from the log again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from nap_stream.core.alert_state import Detector, Firing, Severity
from nap_stream.core.offset_ledger import OffsetLedger
from nap_stream.core.panes import PaneCounts
from nap_stream.core.sequential import (
    BET_COUNT,
    LARGEST_BET,
    QUIET_CUSUM,
    RESOLVE_RATIO,
    SMALLEST_BET,
)
from nap_stream.core.tails import EDGES
from nap_stream.drift.evidence import Evidence, KeptSegment
from nap_stream.drift.key_alerts import FiringKey
from nap_stream.drift.monitor import DriftMonitor, KnownPartition
from nap_stream.records import Example, OffsetRange, TopicPartition

VERSION = 1
_DOCUMENT = "document"
_DETECTORS = "detectors."
_KEYS = "keys."
_OPEN = "open."
_PANE_ARRAYS = ("start_ms", "key", "records", "flagged", "bins")


def dump(monitor: DriftMonitor) -> bytes:
    """Give the state of a monitor."""
    parts = monitor.buffer.open_parts()
    document: dict[str, Any] = {
        "identity": _identity(monitor),
        "partitions": [
            [name.topic, name.partition, known.ledger.end, known.watermark_ms]
            for name, known in monitor.known.items()
        ],
        "closed_until_ms": monitor.buffer.closed_until_ms,
        "late_records": monitor.buffer.late_records,
        "untimely_records": monitor.implausible_timestamps,
        "firing": _firing_tree(monitor.firing),
        "open": [[start, number, len(counts), counts.keys] for start, number, counts in parts],
        "evidence": _evidence_tree(monitor.evidence),
    }
    arrays: dict[str, NDArray[Any]] = {
        f"{_DETECTORS}{name}": array for name, array in monitor.detectors.arrays().items()
    }
    for field in _PANE_ARRAYS:
        held = [getattr(counts, field) for _, _, counts in parts]
        arrays[f"{_OPEN}{field}"] = np.concatenate(held) if held else np.zeros(0, dtype=np.int64)
    if monitor.key_alerts is not None:
        document["keys"] = monitor.key_alerts.monitors.names()
        document["keys_firing"] = [
            [key, _firing_tree(firing.alert), firing.seen_ms]
            for key, firing in monitor.key_alerts.firing.items()
        ]
        found = monitor.key_alerts.monitors.arrays()
        arrays |= {f"{_KEYS}{name}": array for name, array in found.items()}
    text = json.dumps(document, separators=(",", ":")).encode()
    arrays[_DOCUMENT] = np.frombuffer(text, dtype=np.uint8)
    return encode({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def load(monitor: DriftMonitor, content: bytes) -> bool:
    """Let a new monitor take up where the dumped one was.

    Returns:
        False where the content was made with other settings or another calibration, or cannot
        be read, which the log tells; the monitor is as before then.
    """
    fresh = DriftMonitor(monitor.plan, monitor.settings, monitor.clock)
    try:
        arrays = decode(content)
        document = json.loads(arrays[_DOCUMENT].tobytes())
        if document["identity"] != _identity(monitor):
            structlog.get_logger().info("checkpoint_of_other_settings")
            return False
        _restore(fresh, document, arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        structlog.get_logger().warning("checkpoint_unreadable", cause=repr(error))
        return False
    monitor.take_over(fresh)
    return True


def _restore(
    monitor: DriftMonitor, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    for topic, number, end, watermark_ms in document["partitions"]:
        partition = TopicPartition(topic, number)
        monitor.hold(partition)
        monitor.known[partition] = KnownPartition(
            monitor.known[partition].heard_s, OffsetLedger(end), watermark_ms
        )
    monitor.buffer.restore(
        _open_parts(document, arrays), document["closed_until_ms"], document["late_records"]
    )
    monitor.implausible_timestamps = document["untimely_records"]
    monitor.firing = _firing(document["firing"])
    monitor.detectors.restore(_with_prefix(arrays, _DETECTORS))
    _restore_evidence(monitor.evidence, document["evidence"])
    if monitor.key_alerts is not None:
        monitor.key_alerts.monitors.restore(tuple(document["keys"]), _with_prefix(arrays, _KEYS))
        for key, tree, seen_ms in document["keys_firing"]:
            alert = _firing(tree)
            if alert is not None:
                monitor.key_alerts.firing[key] = FiringKey(alert, seen_ms)


def _identity(monitor: DriftMonitor) -> str:
    """What must be the same for a state to mean the same."""
    drift, kafka = monitor.settings.drift, monitor.settings.kafka
    tree = {
        "version": VERSION,
        "plan": asdict(monitor.plan),
        "statistics": [
            EDGES,
            BET_COUNT,
            SMALLEST_BET,
            LARGEST_BET,
            RESOLVE_RATIO,
            QUIET_CUSUM,
        ],
        "pane_ms": drift.pane_ms,
        "keys": None if drift.keys is None else drift.keys.model_dump(),
        "topic": kafka.topic,
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _open_parts(
    document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> list[tuple[int, int, PaneCounts]]:
    parts, position = [], 0
    for start, number, entries, keys in document["open"]:
        cut = slice(position, position + entries)
        columns = {field: arrays[f"{_OPEN}{field}"][cut] for field in _PANE_ARRAYS}
        parts.append((start, number, PaneCounts(**columns, keys=tuple(keys))))
        position += entries
    return parts


def _firing_tree(firing: Firing | None) -> dict[str, Any] | None:
    return None if firing is None else asdict(firing)


def _firing(tree: Mapping[str, Any] | None) -> Firing | None:
    if tree is None:
        return None
    detectors = tuple(Detector(name) for name in tree["detectors"])
    return Firing(**{**tree, "detectors": detectors, "severity": Severity(tree["severity"])})


def _evidence_tree(evidence: Evidence) -> dict[str, Any]:
    return {
        "segments": [asdict(segment) for segment in evidence.segments],
        "classes": [[start, counts] for start, counts in evidence.classes.items()],
        "keys": [[start, counts] for start, counts in evidence.keys.items()],
    }


def _restore_evidence(evidence: Evidence, tree: Mapping[str, Any]) -> None:
    evidence.segments = [_segment(segment) for segment in tree["segments"]]
    evidence.classes = {start: Counter(counts) for start, counts in tree["classes"]}
    evidence.keys = dict(tree["keys"])


def _segment(tree: Mapping[str, Any]) -> KeptSegment:
    offsets, partition = tree["offsets"], TopicPartition(**tree["offsets"]["partition"])
    examples = tuple(
        Example(**{**example, "partition": TopicPartition(**example["partition"])})
        for example in tree["examples"]
    )
    return KeptSegment(
        OffsetRange(partition, offsets["start"], offsets["end"]),
        tree["first_ms"],
        tree["last_ms"],
        examples,
    )


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
