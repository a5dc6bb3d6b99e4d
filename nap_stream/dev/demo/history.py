"""What the scored log says, read back: its rows, and the rolling OOD fraction computed from them.

The window and its limits are those of the drift monitor, put together here from the log alone:
the picture shows what is in the log and nothing that the monitor has told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nap_stream.calibration.calibration import Calibration
from nap_stream.core.detection import window_limits
from nap_stream.core.windows import RollingWindow
from nap_stream.dev.demo.stream import CAMERA_HEADER, kind_of
from nap_stream.drift.limits import detection_plan
from nap_stream.records import Status
from nap_stream.scored_log.local_store import LocalStore
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.reader import scan
from nap_stream.settings import DriftSettings

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


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """The full rolling window that ended at ``time_ms``: its OOD fraction, and what fires."""

    time_ms: int
    fraction: float
    bound: float


def read_images(root: Path, topic: str) -> list[LoggedImage]:
    """All rows of a topic, in order of event time."""
    batches = scan(LocalStore(root), Query(topic=topic), _COLUMNS)
    images = [_image(row) for batch in batches for row in batch.to_pylist()]
    return sorted(images, key=lambda image: (image.time_ms, image.partition, image.offset))


def ood_history(
    images: Sequence[LoggedImage], drift: DriftSettings, calibration: Calibration
) -> list[HistoryPoint]:
    """The rolling OOD fraction and its bound, at the end of each pane from the first full window.

    Args:
        images: From `read_images`.
        drift: The window, its panes and how many false alarms are bearable.
        calibration: Gives the bound its flag rates.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    scored = [image for image in images if image.is_ood is not None]
    window = RollingWindow(drift.window_records, drift.pane_ms)
    plan = detection_plan(drift, calibration.facts)
    points = []
    for start_ms, pane in groupby(scored, key=lambda i: i.time_ms - i.time_ms % drift.pane_ms):
        flags = [bool(image.is_ood) for image in pane]
        state = window.push(start_ms, len(flags), sum(flags))
        if window.is_full:
            limit, _ = window_limits(plan, state.records)
            points.append(HistoryPoint(state.end_ms, state.fraction, limit / state.records))
    return points


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
