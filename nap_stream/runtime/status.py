"""How a run is, for whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nap_stream.core.alert_state import AlertState, Severity
from nap_stream.records import Status, WorkerReport


@dataclass(frozen=True, slots=True)
class CoordinatorStatus:
    """The run now.

    Rows are those in the log since this coordinator started, or since the run did where it must
    end after so many; ``images_scored`` and
    ``dead_letters`` are the workers' own counts. ``ood_fraction`` and ``bound`` are null until
    the window is full, ``max_lag`` (offsets) until a lag is known. ``alerts_fired`` and
    ``alerts_resolved`` count those that began and ended here, of the stream and of keys;
    ``severity`` is that of the stream's alert, null while it is inactive. ``workers`` holds the
    last report of each, without stage times; ``waiting_for`` says of each that waits for something
    outside of it what that is.
    """

    rows: int
    rows_by_status: Mapping[Status, int]
    images_scored: int
    images_per_second: float
    ood_fraction: float | None
    bound: float | None
    alert_state: AlertState
    window_records: int
    window_size: int
    alerts_fired: int
    alerts_resolved: int
    alerts_waiting: int
    max_lag: int | None
    dead_letters: int
    late_records: int
    worker_restarts: int
    workers: Mapping[str, WorkerReport]
    waiting_for: Mapping[str, str] = field(default_factory=dict)
    severity: Severity | None = None
    keys: int = 0
    keys_firing: int = 0
