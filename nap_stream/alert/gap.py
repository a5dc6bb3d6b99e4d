"""From a declared gap to an alert: a CloudEvents 1.0 event in JSON.

The event is a function of the gap and of the monitor that tells of it, so that computing it again
gives the same id and data, and two monitors with one alert topic have each their own.
It has no time: neither offsets that are gone nor their segment's summary have one. The alert's
timestamp in Kafka says when it was sent. `gap_schema` is the JSON Schema that every event fulfils.
"""

from typing import Any

from nap_stream.alert.base import AlertEvent
from nap_stream.alert.envelope import cloud_event, read_schema
from nap_stream.records import SegmentSummary
from nap_stream.settings import Settings

GAP_SCHEMA = "urn:nap-stream:gap:1"
"""Names the version of ``data``. A change that a reader must know of makes a new one."""
GAP_TYPE = "io.nap-stream.gap"


def gap_event(summary: SegmentSummary, settings: Settings, version: str) -> AlertEvent:
    """Make the alert of a gap that the log declares.

    Args:
        summary: Of a segment with a gap.
        settings: Name the monitor and the topic.
        version: The program's.

    Raises:
        ValueError: The segment declares no gap.
    """
    if summary.gap is None:
        raise ValueError("only a declared gap makes an alert")
    monitor, place = settings.alerts.monitor, summary.partition
    offsets = (summary.base_offset, summary.end_offset)
    data = {
        "monitor": monitor,
        "topic": place.topic,
        "partition": place.partition,
        "base_offset": summary.base_offset,
        "end_offset": summary.end_offset,
        "offsets": summary.end_offset - summary.base_offset,
        "reason": summary.gap,
        "segment": summary.path,
        "version": version,
    }
    event = cloud_event(
        data,
        settings,
        kind=GAP_TYPE,
        schema=GAP_SCHEMA,
        identity=[GAP_TYPE, monitor, place.topic, place.partition, *offsets],
        subject=place.topic,
    )
    # In a compacted topic a gap must not take the place of the monitor's last drift alert.
    return AlertEvent(f"{monitor}/gap/{place.partition}", event)


def gap_schema() -> dict[str, Any]:
    """Read the JSON Schema (draft 2020-12) of gap alerts."""
    return read_schema("gap.schema.json")
