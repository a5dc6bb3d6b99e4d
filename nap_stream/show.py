"""One row of the scored log, for a person who asks about it: its image, and what decided it.

Of an image that is not there any more it is said where it was looked for. What needs torch, which
takes seconds to load, is in `nap_stream.show_again`, and loaded where it is asked for.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nap_stream.core.panes import key_text
from nap_stream.core.score_specs import BaseScore
from nap_stream.errors import ChainBrokenError, ConfigError, NapStreamError
from nap_stream.places import places_of, topic_of
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.events import EventKind, alert_id, read_events
from nap_stream.scored_log.evidence import evidence_path, find_evidence
from nap_stream.scored_log.files import SCAN_SCHEMA, files_of
from nap_stream.scored_log.format import SCORE_COLUMNS, storable_text
from nap_stream.scored_log.history import find_alert
from nap_stream.scored_log.query import Query, require_partitions, scan
from nap_stream.scored_log.read import bases_from
from nap_stream.scored_log.seals import read_seal, read_span, seal_paths, told_pruned
from nap_stream.scored_log.segment import read_footer
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import Defect

if TYPE_CHECKING:
    from nap_stream.calibration.calibration import Calibration
    from nap_stream.settings.schema import Settings

Row = dict[str, Any]
"""A row of the log by the names of `SCAN_SCHEMA`, or of a table that is made of it."""
NEIGHBOURS = 3
"""Rows before and after the one that is shown."""
_REACHES = (10, 300)
"""So many offsets to either side are looked at for neighbours, until there are enough."""
_ADDRESS = re.compile(r"([\w.-]{1,249})/(\d{1,9})/(\d{1,18})(?:/(\d{1,9}))?", re.ASCII)


def find_row(
    store: SegmentStore, address: str, unread: list[ChainBrokenError]
) -> tuple[Row, list[Row]]:
    """Find a row by TOPIC/PARTITION/OFFSET[/INDEX]; give it and those about it, itself included.

    Without a / it is an alert's id, or how it alone begins, and the row its first example.
    ``unread`` takes the errors of segments about it that cannot be read.

    Raises:
        ConfigError: The address is none, or the log has no such topic, partition, offset, index or
            alert; it says what there is. Or the alert has no example.
        LogRootError: There is no log at the root.
        ChainBrokenError: The segment cannot be read.
    """
    if "/" not in address:
        address = _example_of(store, address)
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise ConfigError("expected TOPIC/PARTITION/OFFSET[/INDEX]", repr(address))
    offset, asked = int(parts[3]), parts[4]
    try:
        query = Query(topic=parts[1], partitions=(int(parts[2]),))
        (partition,) = require_partitions(store, query)
    except ConfigError as error:
        raise ConfigError(error.problem, address, error.action) from error
    # Before its segment some others are looked at.
    rows = _rows(store, replace(query, offsets=(offset, offset)), unread)
    if not rows and unread:
        raise unread[0]
    if not rows:
        raise ConfigError(_why_no_row(store, partition, offset), address)
    for row in rows:
        if row["index"] == (0 if asked is None and len(rows) == 1 else int(asked or -1)):
            return row, _neighbours(store, query, row, unread)
    images = f"the message has {len(rows)} images, 0 to {len(rows) - 1}"
    raise ConfigError(images, address, "Name one of them")


def _example_of(store: SegmentStore, given: str) -> str:
    """The address of the first example of an alert; ``given`` is as `find_alert` takes it."""
    alert = find_alert(read_events(store, defects=[]), given)
    match alert.data.get("event"):
        case {
            "data": {
                "examples": [
                    {
                        "partition": int(partition),
                        "offset": int(offset),
                        "index": int(index),
                    } as one,
                    *_,
                ]
            }
        }:
            topic = topic_of(one, {"topic": alert.topic})
            return f"{topic}/{partition}/{offset}/{index}"
    raise ConfigError("the alert names no image as an example", alert_id(alert))


def _rows(store: SegmentStore, query: Query, unread: list[ChainBrokenError] | None) -> list[Row]:
    batches = scan(store, query, unread=unread)
    rows: list[Row] = pa.Table.from_batches(batches, SCAN_SCHEMA).to_pylist()
    return rows


def _neighbours(
    store: SegmentStore, query: Query, row: Row, unread: list[ChainBrokenError]
) -> list[Row]:
    offset, at, found = row["offset"], 0, [row]
    for reach in _REACHES:
        near = replace(query, offsets=(max(0, offset - reach), offset + reach))
        unread.clear()
        found = _rows(store, near, unread)
        if row not in found:
            # Its own file cannot be read any more: ``unread`` says why.
            return [row]
        at = found.index(row)
        if min(at, len(found) - at - 1) >= NEIGHBOURS:
            break
    return found[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]


def _why_no_row(store: SegmentStore, partition: TopicPartition, offset: int) -> str:
    for file in files_of(store, partition, offset, offset + 1, unread=None):
        if file.start <= offset < file.end:
            whole = read_footer(store, file.path) or file.footer
            held = (part for part in whole.parts if part.base_offset <= offset < part.end_offset)
            return _no_message(next((part.gap for part in held), None))
    if never_was := _why_no_pruned_row(store, partition, offset):
        return never_was
    for words in told_pruned(store, [partition], offsets=(offset, offset)):
        return f"its row is gone: {words}"
    bases = bases_from(store, partition)
    if not bases:
        return f"the log of {partition} has no segment yet"
    *_, last = files_of(store, partition, bases[-1], unread=None)
    return f"the log of {partition} holds the offsets from {bases[0]} to {last.end - 1}"


def _no_message(gap: str | None) -> str:
    left_out = "the topic has no message there: transactions and compaction leave some out"
    return left_out if gap is None else f"the log declares a gap there: {gap}"


def _why_no_pruned_row(store: SegmentStore, partition: TopicPartition, offset: int) -> str:
    """Why an offset that a seal covers never had a row; empty where it may have had one."""
    for path in seal_paths(store, partition):
        # One that is not valid is named by who tells what was pruned.
        with suppress(ChainBrokenError):
            span = read_span(store, path)
            if not span.start_offset <= offset < span.end_offset:
                continue
            for part in read_seal(store, path).parts:
                if part.base_offset <= offset < part.end_offset and not part.rows:
                    return _no_message(part.gap)
    return ""


def alerts_of(store: SegmentStore, row: Row, defects: list[Defect]) -> list[Row] | None:
    """The alerts of a row's stream, or of its key, that were sent and reach over its offset.

    None where there is none, and no run had written of itself when the row was scored: then alerts
    may have been sent that were not recorded. ``defects`` takes what is wrong with the log's
    events; those that can be read are looked at.
    """
    found, key_by, first_run_ms = [], dict[str, str](), None
    for event in read_events(store, defects=defects):
        if event.kind == EventKind.RUN_STARTED:
            first_run_ms = event.time_ms if first_run_ms is None else first_run_ms
            match event.data:
                case {"settings": {"drift": {"keys": {"by": str(by)}}}}:
                    key_by[event.by] = by
        sent: Any = event.data.get("event") if event.kind == EventKind.ALERT else None
        data = sent.get("data") if isinstance(sent, dict) else None
        if isinstance(data, dict) and _is_about(data, row, key_by.get(event.by, "key")):
            told = {name: data.get(name) for name in ("state", "severity", "key", "summary")}
            found.append({"event": event.number, "id": sent.get("id"), **told})
    is_recorded = first_run_ms is not None and first_run_ms <= _milliseconds(row["scored_time"])
    return found if found or is_recorded else None


def _key_of(row: Row, key_by: str) -> str:
    """A row's key as alerts have it; see `nap_stream.settings.drift.KeySettings`."""
    name = storable_text(key_by.partition(":")[2])
    values = [header["value"] for header in row["headers"] if header["name"] == name]
    return key_text(row["key"] if key_by == "key" else values[-1] if values else None)


def _is_about(data: dict[str, Any], row: Row, key_by: str) -> bool:
    if data.get("key") not in (None, _key_of(row, key_by)):
        return False
    partition = TopicPartition(row["topic"], row["partition"])
    return any(
        place.partition == partition and place.start <= row["offset"] < place.end
        for place in places_of(data)
    )


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image's bytes and where they were found; or None, and where they were looked for."""

    data: bytes | None
    where: str
    looked: tuple[str, ...] = ()


def find_image(row: Row, evidence: SegmentStore | None, settings: "Settings | None") -> FoundImage:
    """Find the bytes of a row's image: as evidence, else in Kafka. They have the row's SHA-256."""
    if row["format"] == "outputs":
        return FoundImage(None, "", ("the row is of a model's outputs: no image was sent",))
    if row["status"] not in {Status.OK, Status.NOT_FINITE} or row["sha256"] is None:
        return FoundImage(None, "", (f"the image could not be read: {row['error']}",))
    looked = []
    if evidence is None:
        looked.append("evidence: no root is given (--evidence, or evidence.root of --config)")
    else:
        from nap_stream.settings.schema import LimitSettings  # noqa: PLC0415  it takes 0.1 s

        limits = LimitSettings() if settings is None else settings.limits
        path = evidence_path(_milliseconds(row["scored_time"]), row["sha256"])
        where = f"{evidence.root}/{path}"
        try:
            if (data := find_evidence(evidence, path, limits.max_image_bytes)) is not None:
                return FoundImage(data, where)
            looked.append(f"evidence: there is no {where}: it was not chosen, or is erased")
        except NapStreamError as error:
            looked.append(f"evidence: {error}")
    if settings is None:
        looked.append("Kafka: no --config is given, which says how to reach it")
        return FoundImage(None, "", tuple(looked))
    from nap_stream.show_again import from_kafka  # noqa: PLC0415  it loads torch

    try:
        data = from_kafka(row, settings)
    except NapStreamError as error:
        return FoundImage(None, "", (*looked, f"Kafka: {error}"))
    return FoundImage(data, f"Kafka, {row['topic']}/{row['partition']}@{row['offset']}")


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def scores_of(row: Row, calibration: "Calibration | None") -> list[Row]:
    """All scores of a row, what says most against it first, against the calibration's images.

    ``against`` says of what images or records, and ``at_most`` is the share of these whose score is
    no higher. Where the method sums log p-values, ``p_value`` is the score's own, ``weight`` what
    its logarithm is taken by, and ``share`` its part of the sum. What is not known is None: without
    the calibration that the row was judged by, all but the values.
    """
    names = {str(name): str(name) for name in SCORE_COLUMNS} | {"confidence": str(BaseScore.MSP)}
    values = {
        names[name]: row[name]
        for name in SCORE_COLUMNS
        if isinstance(row[name], float) and not name.endswith("p_value")
    }
    held, terms = dict[str, tuple[str, NDArray[Any]]](), {}
    if calibration is not None and values:
        held = _set_against(row, calibration)
        terms = calibration.terms({name: np.array([value]) for name, value in values.items()})
    total = sum(float(weight * log_p[0]) for weight, log_p in terms.values()) or 1.0
    shown = []
    for name, value in values.items():
        against, own = held.get(name, (None, None))
        at_most = None if own is None else float(np.mean(own <= own.dtype.type(value)))
        p_value = weight = share = None
        if name in terms:
            weight, log_p = terms[name]
            p_value, share = float(np.exp(log_p[0])), float(weight * log_p[0]) / total
        score = {"score": name, "value": value, "at_most": at_most, "against": against}
        shown.append({**score, "p_value": p_value, "weight": weight, "share": share})
    return sorted(shown, key=lambda score: -(score["share"] or 0.0))


def _set_against(row: Row, calibration: "Calibration") -> dict[str, tuple[str, NDArray[Any]]]:
    """The values that each score of a row is set against, and what they are of."""
    from nap_stream.calibration.calibration import CLASS_ID, SCORE  # noqa: PLC0415  as above

    rule, is_baseline = calibration.document.rule, calibration.document.baseline is not None
    fused, of = calibration.arrays[SCORE], "baseline" if is_baseline else "calibration"
    found = {
        name: (f"{of}, n = {len(values):,}", values) for name, values in calibration.values.items()
    }
    if rule.per_class:
        # As it was judged.
        fused = fused[calibration.arrays[CLASS_ID] == row["class_id"]]
        of += f", class {row['class_name']}"
    if len(fused):
        records = " records" if is_baseline else ""
        found["fused"] = f"{of}, n = {len(fused):,}{records}", fused
    return found
