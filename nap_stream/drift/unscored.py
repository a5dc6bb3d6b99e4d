"""The watch over images that have no scores: they have no part in any other verdict.

Let each image be scored or not, and let the share of those that are not be at most ``bound``, given
the images before. The detector is an e-detector against that bound, as that of flags is against
p_U (`nap_stream.core.sequential`): it fires within T images with a probability of at most T / A,
however images depend on each other. A is the run length of the settings, all of it: this alert is
of another thing than drift, and has a budget of its own.

It depends on the rows of the log alone, as the other detectors do: images count in the panes of
event time in which those with scores count.
"""

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Change, Detector, Firing, Severity, step
from nap_stream.core.panes import ClosedPane, WindowState
from nap_stream.core.sequential import (
    BET_COUNT,
    LARGEST_BET,
    QUIET_CUSUM,
    RESOLVE_RATIO,
    SMALLEST_BET,
)
from nap_stream.drift.detectors import EDetector, with_prefix
from nap_stream.drift.records import Contribution, DetectorReading, UnscoredAlert, UnscoredShare
from nap_stream.records import STATUSES, SegmentSummary, Status, UnscoredImages
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings
from nap_stream.text import without_numbers

MAX_REASONS = 10_000
"""Reasons of so many panes and segments are kept as evidence, the newest."""
SHOWN_REASONS = 3
_PANES, _DETECTOR = "panes", "detector."


@dataclass(frozen=True, slots=True)
class UnscoredDocument:
    """What the watch knows, but for its arrays.

    ``identity`` is a digest of all that must be the same for a state to mean the same; ``statuses``
    are the columns of its counts.
    """

    identity: str
    statuses: tuple[Status, ...]
    firing: Firing | None
    reasons: tuple[UnscoredImages, ...]


class UnscoredWatch:
    """The detector of the share of images without scores, its alert and its evidence.

    ``drift.unscored`` is set. It goes on from the state of another one, if given.

    Raises:
        ValueError: The settings leave it out, or the parts of the state do not belong together.
        KeyError: The state lacks an array.
    """

    def __init__(
        self,
        drift: DriftSettings,
        alerts: AlertSettings,
        document: UnscoredDocument | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        if drift.unscored is None:
            raise ValueError("drift.unscored is null")
        self._bound, self._ignored = drift.unscored.bound, frozenset(drift.unscored.ignored)
        self._is_image = np.array([status not in self._ignored for status in STATUSES])
        self._ok = STATUSES.index(Status.OK)
        self._run_length, self._pane_ms = drift.run_length, drift.pane_ms
        self._size, self._alerts = drift.window_records, alerts
        # Panes of the newest images: (start, images by status).
        self._panes: deque[tuple[int, NDArray[np.int64]]] = deque()
        self._total = np.zeros(len(STATUSES), dtype=np.int64)
        self._firing: Firing | None = None
        self._reasons: deque[UnscoredImages] = deque(maxlen=MAX_REASONS)
        own = None
        if document is not None and arrays is not None:
            own = with_prefix(arrays, _DETECTOR)
            for row in in_order(arrays[_PANES][:, 1:], document.statuses, arrays[_PANES][:, 0]):
                self._take(*row)
            self._firing = document.firing
            self._reasons.extend(document.reasons)
        self._detector = EDetector(
            Detector.UNSCORED_IMAGES, [self._bound], math.log(self._run_length), own
        )

    def state(self) -> tuple[UnscoredDocument, dict[str, NDArray[Any]]]:
        """Give all that it knows: a document, and exact arrays by name."""
        document = UnscoredDocument(self.identity(), STATUSES, self._firing, tuple(self._reasons))
        rows = [np.concatenate(([start], images)) for start, images in self._panes]
        panes = np.array(rows, dtype=np.int64).reshape(-1, 1 + len(STATUSES))
        own = {f"{_DETECTOR}{name}": array for name, array in self._detector.state().items()}
        return document, {_PANES: panes, **own}

    def identity(self) -> str:
        """Tell what its state depends on beside the rows: another one's state means another."""
        tree = [
            *(self._bound, sorted(self._ignored), self._run_length, self._size, self._pane_ms),
            *(BET_COUNT, SMALLEST_BET, LARGEST_BET, RESOLVE_RATIO, QUIET_CUSUM),
        ]
        return hashlib.sha256(json.dumps(tree).encode()).hexdigest()

    @property
    def firing(self) -> Firing | None:
        """The alert, while it fires."""
        return self._firing

    @property
    def reading(self) -> DetectorReading:
        """Where the detector stands."""
        return self._detector.reading()

    @property
    def share(self) -> UnscoredShare | None:
        """The newest images; None before the first."""
        if not self._panes:
            return None
        found = zip(STATUSES, self._total.tolist(), strict=True)
        failed = [(status, n) for status, n in found if n and self._is_failure(status)]
        return UnscoredShare(
            start_ms=self._panes[0][0],
            end_ms=self._panes[-1][0] + self._pane_ms,
            images=self._counted(self._total),
            by_status=tuple(sorted(failed, key=lambda item: -item[1])),
            bound=self._bound,
            severity=None if self._firing is None else self._firing.severity,
        )

    def add(self, summary: SegmentSummary, earliest_ms: int | None) -> None:
        """Keep why images of a segment have no scores.

        ``earliest_ms`` is the start of the oldest pane in which they could be counted.
        """
        for each in summary.unscored:
            if self._is_failure(each.status):
                start_ms = each.start_ms if earliest_ms is None else earliest_ms
                self._reasons.append(replace(each, start_ms=max(each.start_ms, start_ms)))

    def push(self, pane: ClosedPane, window: WindowState | None) -> UnscoredAlert | None:
        """Take the next pane; give the alert that is to be sent, if any.

        ``window`` is the rolling window of scored records after the pane.
        """
        images = int(pane.images[self._is_image].sum()) if len(pane.images) else 0
        if not images:
            return None
        self._take(pane.start_ms, pane.images)
        unscored = images - int(pane.images[self._ok])
        self._detector.push(images, np.array([unscored]), pane.start_ms)
        self._forget()
        end_ms, since = pane.start_ms + self._pane_ms, self._detector.onset
        # The newest images tell sooner that it has grown worse, those since the onset how it began.
        newest = 1 - int(self._total[self._ok]) / self._counted(self._total)
        is_critical = max(since.share, newest) >= self._alerts.critical_fraction
        self._firing, change = step(
            self._firing,
            (Detector.UNSCORED_IMAGES,) if self._detector.active else (),
            severity=Severity.CRITICAL if is_critical else Severity.WARNING,
            onset_ms=since.start_ms,
            now_ms=end_ms,
            repeat_interval_ms=round(self._alerts.repeat_interval_s * 1000),
        )
        return None if change is None else self._alert(change, end_ms, window)

    def _alert(self, change: Change, end_ms: int, window: WindowState | None) -> UnscoredAlert:
        share = self.share
        assert share is not None
        start_ms = max(change.alert.onset_ms, share.start_ms)
        within = [each for each in self._reasons if start_ms <= each.start_ms < end_ms]
        within.sort(key=lambda each: (each.start_ms, each.partition, each.offset, each.index))
        return UnscoredAlert(
            change=change,
            time_ms=end_ms,
            share=share,
            since=self._detector.onset,
            reading=self._detector.reading(),
            window=window,
            reasons=_commonest(within),
            keys=self._contributors(within),
            examples=tuple(within[: self._alerts.examples]),
        )

    def _contributors(self, within: list[UnscoredImages]) -> tuple[Contribution, ...]:
        total: Counter[str] = Counter()
        for each in within:
            if each.key:
                total[each.key] += each.images
        most = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Contribution(*item) for item in most[: self._alerts.contributors])

    def _is_failure(self, status: Status) -> bool:
        return status is not Status.OK and status not in self._ignored

    def _take(self, start_ms: int, images: NDArray[np.int64]) -> None:
        self._panes.append((start_ms, images))
        self._total = self._total + images
        while self._counted(self._total - self._panes[0][1]) >= self._size:
            self._total = self._total - self._panes.popleft()[1]

    def _counted(self, images: NDArray[np.int64]) -> int:
        return int(images[self._is_image].sum())

    def _forget(self) -> None:
        start_ms = self._panes[0][0]
        if any(each.start_ms < start_ms for each in self._reasons):
            kept = [each for each in self._reasons if each.start_ms >= start_ms]
            self._reasons = deque(kept, maxlen=MAX_REASONS)


def in_order(
    images: NDArray[np.int64], statuses: tuple[Status, ...], starts_ms: NDArray[np.int64]
) -> list[tuple[int, NDArray[np.int64]]]:
    """Bring counts whose columns are ``statuses``, int64 (R, K), into the order of `STATUSES`.

    Raises:
        ValueError: There are not as many columns.
    """
    if images.shape != (len(starts_ms), len(statuses)):
        raise ValueError(f"{images.shape} counts of {len(starts_ms)} panes, {len(statuses)} kinds")
    ordered = np.zeros((len(images), len(STATUSES)), dtype=np.int64)
    ordered[:, [STATUSES.index(status) for status in statuses]] = images
    return list(zip(starts_ms.tolist(), ordered, strict=True))


def _commonest(within: list[UnscoredImages]) -> tuple[UnscoredImages, ...]:
    """The statuses and errors with the most images, each with all its images and its first."""
    firsts: dict[tuple[Status, str], UnscoredImages] = {}
    total: Counter[tuple[Status, str]] = Counter()
    for each in within:
        name = (each.status, without_numbers(each.error))
        firsts.setdefault(name, each)
        total[name] += each.images
    most = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_REASONS]
    return tuple(replace(firsts[name], images=images) for name, images in most)
