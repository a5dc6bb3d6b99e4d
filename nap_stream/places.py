"""The rows of the log that an alert speaks of. Alerts may be of any version, or of anybody."""

from collections.abc import Iterator, Mapping
from typing import Any

from nap_stream.records import OffsetRange, TopicPartition


def topic_of(item: Any, data: Mapping[str, Any]) -> Any:
    """The topic of one of an alert's ranges or examples: its own, or that of the monitor.

    A monitor of several topics has a name of its own where the alert has a topic; then each range
    and example names its topic.
    """
    own = item.get("topic") if isinstance(item, Mapping) else None
    return data.get("topic") if own is None else own


def places_of(data: Any) -> Iterator[OffsetRange]:
    """The offsets that an alert's data speak of; of a gap, those that are gone.

    What does not fit the form of alerts is left out.
    """
    if not isinstance(data, Mapping):
        return
    ranges, examples = data.get("offsets"), data.get("examples")
    # Of a gap they are a number.
    for each in ranges if isinstance(ranges, list) else ():
        yield from _range(each, data, "start", "end")
    yield from _range(data, data, "base_offset", "end_offset")
    for each in examples if isinstance(examples, list) else ():
        yield from _range(each, data, "offset", None)


def _range(
    item: Any, data: Mapping[str, Any], first: str, end: str | None
) -> Iterator[OffsetRange]:
    if not isinstance(item, Mapping):
        return
    topic, partition, since = topic_of(item, data), item.get("partition"), item.get(first)
    if not (isinstance(topic, str) and isinstance(partition, int) and isinstance(since, int)):
        return
    until = since + 1 if end is None else item.get(end)
    if isinstance(until, int) and 0 <= since < until:
        yield OffsetRange(TopicPartition(topic, partition), since, until)
