"""From a declared gap to an alert: a CloudEvents 1.0 event in JSON.

The event is a function of the gap alone, so that computing it again gives the same id and data.
It has no time: neither offsets that are gone nor their segment's summary have one. The alert's
timestamp in Kafka says when it was sent. `gap_schema` is the JSON Schema that every event fulfils.
"""

import hashlib
import json
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from nap_stream.alert.base import AlertEvent
from nap_stream.records import SegmentSummary
from nap_stream.settings import Settings

GAP_SCHEMA = "urn:nap-stream:gap:1"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
GAP_TYPE = "io.nap-stream.gap"


def gap_event(summary: SegmentSummary, settings: Settings, version: str) -> AlertEvent:
    """Make the alert of a gap that the log declares.

    Args:
        summary: Of a segment with a gap.
        settings: Name the monitor.
        version: The program's.

    Raises:
        ValueError: The segment declares no gap.
    """
    if summary.gap is None:
        raise ValueError("only a declared gap makes an alert")
    monitor, place = settings.alerts.monitor, summary.partition
    event = {
        "specversion": "1.0",
        "id": _event_id(summary),
        "source": f"/nap-stream/{quote(place.topic, safe='')}/{quote(monitor, safe='')}",
        "type": GAP_TYPE,
        "subject": place.topic,
        "datacontenttype": "application/json",
        "dataschema": GAP_SCHEMA,
        "data": {
            "monitor": monitor,
            "topic": place.topic,
            "partition": place.partition,
            "base_offset": summary.base_offset,
            "end_offset": summary.end_offset,
            "offsets": summary.end_offset - summary.base_offset,
            "reason": summary.gap,
            "segment": summary.path,
            "version": version,
        },
    }
    return AlertEvent(monitor, event)


def gap_schema() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) of gap alerts."""
    text = files("nap_stream.alert").joinpath("gap.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _event_id(summary: SegmentSummary) -> str:
    place = summary.partition
    parts = [GAP_TYPE, place.topic, place.partition, summary.base_offset, summary.end_offset]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
