"""Whether the demo showed what a monitor must do, judged from the scored log and the alerts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nap_stream.core.alert_state import Reason, Transition
from nap_stream.demo.digits import BROKEN, CAMERA_HEADER, kind_of
from nap_stream.records import Status
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.report import VerifyReport

_COLUMNS = ("partition", "offset", "key", "event_time", "status", "is_ood", "headers")


@dataclass(frozen=True, slots=True)
class LoggedImage:
    """A row of the log. ``is_ood`` is null where the image was not scored."""

    partition: int
    offset: int
    name: str
    kind: str
    camera: str
    time_ms: int
    status: str
    is_ood: bool | None


def read_images(root: Path | str, topic: str) -> list[LoggedImage]:
    """All rows of a topic, in order of event time."""
    batches = scan(store_at(root), Query(topic=topic), _COLUMNS)
    images = [_image(row) for batch in batches for row in batch.to_pylist()]
    return sorted(images, key=lambda image: (image.time_ms, image.partition, image.offset))


def _image(row: dict[str, Any]) -> LoggedImage:
    cameras = [header["value"] for header in row["headers"] if header["name"] == CAMERA_HEADER]
    name = (row["key"] or b"").decode("utf-8", "replace")
    return LoggedImage(
        partition=row["partition"],
        offset=row["offset"],
        name=name,
        kind=kind_of(name),
        camera=cameras[0].decode("utf-8", "replace") if cameras and cameras[0] else "",
        time_ms=round(row["event_time"].timestamp() * 1000),
        status=Status(row["status"]).value,
        is_ood=row["is_ood"],
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left when the stream is over; times in milliseconds since the epoch."""

    alerts: Sequence[Mapping[str, Any]]
    """Events of the alert topic, in order of arrival."""
    changed_ms: int
    """When the first out-of-distribution image could come."""
    returned_ms: int
    """When the last one had come."""
    sent: Sequence[str]
    """Names of the images."""
    logged: Sequence[LoggedImage]
    report: VerifyReport
    exit_code: int
    """Of the monitor."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, whether it does, and what was found."""

    claim: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True)
class AlertSeen:
    """What of an event is judged: its state, why it was sent, whose it is, and when.

    ``key`` is null for the alert of the stream. ``time_ms`` is since the epoch.
    """

    state: str
    reason: str
    key: str | None
    time_ms: int | None


def check_outcome(outcome: Outcome) -> tuple[Check, ...]:
    """Check everything; the demo succeeded where all checks hold."""
    code = outcome.exit_code
    ended = Check("the monitor ended in good order", code == 0, f"exit code {code}")
    return (*_alert_checks(outcome), *_log_checks(outcome), ended)


def read_alert(event: Mapping[str, Any]) -> AlertSeen:
    """Read an event as far as it can be."""
    found = event.get("data")
    data = found if isinstance(found, Mapping) else {}
    state, reason, key = (data.get(name) for name in ("state", "reason", "key"))
    try:
        time_ms = round(datetime.fromisoformat(str(event.get("time"))).timestamp() * 1000)
    except ValueError:
        time_ms = None
    return AlertSeen(str(state), str(reason), None if key is None else str(key), time_ms)


def _alert_checks(outcome: Outcome) -> tuple[Check, ...]:
    alerts = [read_alert(event) for event in outcome.alerts]
    early = [a for a in alerts if a.time_ms is None or a.time_ms <= outcome.changed_ms]
    states = [transition.value for transition in Transition]
    others = [a for a in alerts if a.state not in states]
    firing, resolved = _of(alerts, None, Reason.BEGAN), _of(alerts, None, Reason.ENDED)
    cameras = {a.key for a in alerts if a.key is not None}
    repaired = [
        camera
        for camera in BROKEN
        if len(_of(alerts, camera, Reason.BEGAN)) == len(_of(alerts, camera, Reason.ENDED)) == 1
    ]
    return (
        Check("no alert before the change", not early, f"{len(early)}"),
        _one_after("firing", firing, outcome.changed_ms, "the change"),
        _one_after("resolved", resolved, outcome.returned_ms, "the return"),
        Check(
            f"exactly {' and '.join(BROKEN)} are named, each once, and resolved",
            cameras == set(BROKEN) == set(repaired),
            f"named: {', '.join(sorted(cameras)) or 'none'}; {len(repaired)} fired and resolved",
        ),
        Check("no other message in the alert topic", not others, f"{len(others)}"),
    )


def _of(alerts: Sequence[AlertSeen], key: str | None, reason: Reason) -> list[AlertSeen]:
    return [a for a in alerts if a.key == key and a.reason == reason.value]


def _one_after(state: str, alerts: Sequence[AlertSeen], moment_ms: int, moment: str) -> Check:
    delays_ms = [alert.time_ms - moment_ms for alert in alerts if alert.time_ms is not None]
    delays = ", ".join(f"{delay_ms / 1000:+.1f} s from {moment}" for delay_ms in delays_ms)
    return Check(
        f"exactly one {state}, after {moment}",
        len(alerts) == len(delays_ms) == 1 and delays_ms[0] > 0,
        f"{len(alerts)}: {delays}" if delays else f"{len(alerts)}",
    )


def _log_checks(outcome: Outcome) -> tuple[Check, ...]:
    sent, logged = Counter(outcome.sent), Counter(image.name for image in outcome.logged)
    offsets = {(image.partition, image.offset) for image in outcome.logged}
    failed = [image for image in outcome.logged if image.status != Status.OK.value]
    report = outcome.report
    verified = f"{report.partitions} partitions, {report.segments} segments, {report.rows} rows"
    return (
        Check(
            "one row for each image that was sent, and for each offset",
            sent == logged and len(offsets) == len(outcome.logged),
            f"{sent.total()} sent, {logged.total()} rows, {len(offsets)} offsets, "
            f"{(sent - logged).total()} missing, {(logged - sent).total()} too many",
        ),
        Check("every image was decoded and scored", not failed, f"{len(failed)} were not"),
        Check(
            "the log verifies clean",
            report.clean,
            "; ".join([verified, *(str(defect) for defect in report.defects)]),
        ),
    )
