"""A month of a scored log with events: two models, an outage, a drift, alerts and answers."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from nap_stream.clock import ManualClock
from nap_stream.records import ChainPosition, TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.events import Event, append_event
from nap_stream.scored_log.format import ROWS, rows_of
from nap_stream.scored_log.stores import SegmentStore

DAY_MS, HOUR_MS, STEP_MS = 86_400_000, 3_600_000, 600_000
MODELS = ("a1" * 32, "d4" * 32)
CALIBRATIONS = ("b2" * 32, "e5" * 32)
TOPIC, MONITOR = "bottles", "line-4"
ALPHA = 0.02


def at(text: str) -> int:
    """Milliseconds of a time in May 2026, as in 12T03:00."""
    return round(datetime.fromisoformat(f"2026-05-{text}").replace(tzinfo=UTC).timestamp() * 1000)


START_MS, END_MS = at("01T00:00"), at("31T00:00")
OUTAGE = at("12T03:00"), at("12T09:00")
DRIFT = at("20T10:00"), at("21T16:00")
CHANGED_MS = at("16T12:00")


def write_rows(
    store: SegmentStore,
    *,
    days: int = 30,
    names: tuple[str, ...] = (),
    topic: str = TOPIC,
    first_ms: int | None = None,
) -> None:
    """Write a segment a day of two partitions: an image every ten minutes, of six cameras.

    ``names`` take the place of the classes and the cameras, ``first_ms`` of the event time of the
    first image of either partition.
    """
    for number in (0, 1):
        _write_partition(store, TopicPartition(topic, number), days, names, first_ms)


def _write_partition(
    store: SegmentStore,
    partition: TopicPartition,
    days: int,
    names: tuple[str, ...],
    first_ms: int | None,
) -> None:
    generator = np.random.default_rng(partition.partition)
    position: ChainPosition | None = None
    for day in range(days):
        time = START_MS + day * DAY_MS + np.arange(0, DAY_MS, STEP_MS) + 7 * partition.partition
        time = time[(time < OUTAGE[0]) | (time >= OUTAGE[1])]
        is_new = int(START_MS + day * DAY_MS >= CHANGED_MS - HOUR_MS * 12)
        identity = WriterIdentity("worker-0", MODELS[is_new], CALIBRATIONS[is_new])
        log = ScoredLog(store, identity, ManualClock(int(time[-1])))
        position = position or log.begin(partition, 0, "topic-id")
        if day == 9 and partition.partition == 1:
            end = position.offset + 40
            nothing = pa.Table.from_batches([], ROWS)
            position = log.publish(
                partition, position, end, nothing, gap="retention deleted them"
            ).position
        rows = _rows(generator, time, position.offset, names)
        if day == 0 and first_ms is not None:
            column = rows.column("event_time").to_pylist()
            column[0] = datetime.fromtimestamp(first_ms / 1000, UTC)
            place = rows.column_names.index("event_time")
            field = ROWS.field("event_time")
            rows = rows.set_column(place, field, pa.array(column, field.type))
        position = log.publish(partition, position, position.offset + len(time), rows).position


def _rows(
    generator: np.random.Generator, time: Any, offset: int, names: tuple[str, ...]
) -> pa.Table:
    count = len(time)
    classes = names or ("whole", "cracked", "no label", "no cap")
    camera, class_id = np.arange(count) % 6, generator.integers(0, len(classes), count)
    p_value = generator.uniform(0.0005, 1, count)
    is_drifting = (time >= DRIFT[0]) & (time < DRIFT[1]) & (camera >= 4)
    p_value = np.where(is_drifting, p_value / 40, p_value)
    failed = generator.uniform(0, 1, count) < 0.01
    read = time + generator.integers(20, 400, count)
    scored = read + generator.gamma(2, 40, count).astype(np.int64) + 3

    def ok(values: list[Any]) -> list[Any]:
        return [None if bad else value for bad, value in zip(failed, values, strict=True)]

    cameras = names or tuple(f"camera-{number + 1}" for number in range(6))
    columns: dict[str, list[Any]] = {
        "offset": list(range(offset, offset + count)),
        "index": [0] * count,
        "key": [cameras[number % len(cameras)].encode() for number in camera],
        "event_time": time.tolist(),
        "ingest_time": read.tolist(),
        "scored_time": scored.tolist(),
        "status": ["corrupt" if bad else "ok" for bad in failed],
        "error": ["cannot be decoded" if bad else None for bad in failed],
        "class_id": ok(class_id.tolist()),
        "class_name": ok([classes[number] for number in class_id]),
        "p": ok(p_value.tolist()),
        "sha256": [f"{offset + n:064x}" for n in range(count)],
        "headers": [[("line", b"east" if number < 3 else b"west")] for number in camera],
    }
    p_values = columns.pop("p")
    columns["ood_p_value"] = p_values
    columns["is_ood"] = [None if p is None else p <= ALPHA for p in p_values]
    for name in ("confidence", "energy", "nap", "fused", "max_logit"):
        columns[name] = ok([0.5] * count)
    return pa.Table.from_batches([rows_of(columns, count)], ROWS)


def write_events(store: SegmentStore) -> list[Event]:
    """Write what happened in that month."""
    return [append_event(store, event) for event in _events()]


def run_started(when: str, by: str, *, model: int = 0, **drift: Any) -> Event:
    """A run that begins; ``drift`` changes its settings."""
    keys = {"by": "key", "max_keys": 100}
    settings = {
        "kafka": {"topic": TOPIC, "group_id": "nap"},
        "drift": {
            "false_alarms": "one per 30 days at 0.01 images/s",
            "expected_run_length": None,
            "window_records": 500,
            "keys": keys,
            **drift,
        },
    }
    data = {
        "version": "0.1.0",
        "settings": settings,
        "settings_sha256": "00" * 32,
        "model_fingerprint": MODELS[model],
        "calibration_fingerprint": CALIBRATIONS[model],
        "alpha": ALPHA,
        "flag_rate": 0.028,
        "window_records": 500,
        "bound": 0.08 if model else 0.1,
        "detectors": ["ood-window", "ood-sequential"],
    }
    return _event(when, "run-started", by, data)


def alert(when: str, id_: str, state: str, severity: str, words: str, **more: Any) -> Event:
    """An alert as it was sent."""
    kind = more.pop("kind", f"io.nap-stream.drift.{state}")
    data = {"state": state, "severity": severity, "summary": words, "key": None, **more}
    time = datetime.fromtimestamp(at(when) / 1000, UTC).isoformat()
    return _event(
        when,
        "alert",
        "coordinator",
        {"event": {"id": id_, "type": kind, "time": time, "data": data}},
    )


def _event(when: str, kind: str, by: str, data: Any) -> Event:
    return Event(time_ms=at(when), kind=kind, by=by, topic=TOPIC, monitor=MONITOR, data=data)


def _events() -> list[Event]:
    found = "31 of 90 images (34.4 %) since about 10:00 UTC look out-of-distribution"
    gap = {"partition": 1, "offsets": 40, "reason": "retention deleted them"}
    return [
        run_started("01T00:00", "coordinator-1"),
        alert("10T00:00", "gap-1", "", "", "", kind="io.nap-stream.gap", **gap),
        _event("12T03:00", "run-stopped", "coordinator-1", {"reason": "SIGTERM"}),
        run_started("12T09:00", "coordinator-2"),
        run_started("16T12:00", "coordinator-3", model=1, window_records=600),
        alert("20T14:00", "drift-1", "firing", "warning", f"{found}; camera-5 contributes most"),
        alert(
            "20T15:00", "key-1", "firing", "warning", "12 of 15 images of camera-5", key="camera-5"
        ),
        alert("20T18:00", "drift-2", "firing", "critical", f"Now critical: {found}"),
        _event(
            "20T19:00",
            "acknowledged",
            "Ada Moreno",
            {"alert": "drift-1", "comment": "Lens fogged; cleaned"},
        ),
        alert("21T18:00", "drift-3", "resolved", "critical", "No longer"),
        alert("21T19:00", "key-2", "resolved", "warning", "No longer", key="camera-5"),
        _event(
            "22T08:00",
            "accepted",
            "Ada Moreno",
            {
                "key": "camera-5",
                "from_ms": at("20T10:00"),
                "effective_ms": at("22T08:01"),
                "reason": "New lamp",
            },
        ),
        alert(
            "29T08:00",
            "bad-1",
            "firing",
            "warning",
            "7 of 200 images have no scores",
            kind="io.nap-stream.unscored.firing",
        ),
    ]
