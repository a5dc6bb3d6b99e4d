"""The records of drift: what a calibration tells the monitor, and what the monitor tells."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from nap_stream.core.alert_state import AlertState, Change, Detector, Firing, Severity
from nap_stream.core.block_readings import BlockReading
from nap_stream.core.blocks import Blocks
from nap_stream.core.panes import WindowState
from nap_stream.core.sequential import RESOLVE_RATIO, Onset
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw, TailEvent
from nap_stream.core.time_kinds import TimeKinds
from nap_stream.records import (
    Acceptance,
    Example,
    OffsetRange,
    SegmentSummary,
    Status,
    TopicPartition,
    UnscoredImages,
)


@dataclass(frozen=True, slots=True, eq=False)
class BaselineFacts:
    """What the drift monitor and its alerts need to know of a baseline.

    It is the stretch of event time ``[since_ms, until_ms)`` of the log at ``name``, for which
    ``made_by`` vouched at ``made_ms`` because of ``reason``; times are in milliseconds since the
    epoch. ``by`` says what names a key, as `nap_stream.settings.drift.KeySettings` does; null where
    keys are not told apart. ``blocks`` are those of the stretch, ``kinds`` the kinds of time whose
    blocks are compared. Of each key one record a pane of ``one_per_pane_ms`` counted, or all where
    that is null.
    """

    name: str
    by: str | None
    since_ms: int
    until_ms: int
    made_ms: int
    made_by: str
    reason: str
    blocks: Blocks
    kinds: TimeKinds
    one_per_pane_ms: int | None = None


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """What the drift monitor and its alerts need to know of a calibration.

    ``size`` is the number of calibration images. An image is compared with a group of them: with
    all, or, where ``per_class``, with those of its class. ``groups`` counts the groups, and
    ``flag_rate_laws`` are the laws of their flag rates, ascending, equal ones once. ``tail_laws``
    are those of the rates of `TAIL_EVENTS`, in their order; empty for an event that some group is
    too small for. Fingerprints are hexadecimal. ``baseline`` is null where there is none; the
    fingerprint covers it.
    """

    alpha: float
    size: int
    per_class: bool
    flag_rate_laws: tuple[FlagRateLaw, ...]
    groups: int
    tail_laws: tuple[tuple[FlagRateLaw, ...], ...]
    fingerprint: str
    model_fingerprint: str
    baseline: BaselineFacts | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        laws = self.flag_rate_laws
        if not laws or list(laws) != sorted(set(laws)):
            raise ValueError(f"expected distinct laws in ascending order, got {laws}")
        sizes = [law.size for law in laws]
        if max(sizes) > self.size or (not self.per_class and sizes != [self.size]):
            raise ValueError(f"groups of {sizes} of {self.size} images, {self.per_class = }")
        if len(self.tail_laws) != len(TAIL_EVENTS) or self.groups < len(laws):
            raise ValueError(f"{len(self.tail_laws)} tails, {self.groups} groups of {len(laws)}")


@dataclass(frozen=True, slots=True)
class DetectorReading:
    """Where a detector stands: it is active from ``statistic >= threshold`` on.

    For the rolling window both are counts of flags; for an e-detector the mixed Shiryaev-Roberts
    statistic and its threshold. Below ``resolve_threshold`` it is no longer active. One that is not
    ``deciding`` is shown beside those that are: no alert comes of it.
    """

    detector: Detector
    active: bool
    statistic: float
    threshold: float
    resolve_threshold: float
    deciding: bool = True

    @classmethod
    def of_e_detector(
        cls, detector: Detector, log_statistic: float, log_threshold: float, *, active: bool
    ) -> Self:
        """That of an e-detector, whose alarm ends at `RESOLVE_RATIO` of its threshold."""
        threshold = math.exp(log_threshold)
        return cls(detector, active, math.exp(log_statistic), threshold, threshold * RESOLVE_RATIO)


@dataclass(frozen=True, slots=True)
class Contribution:
    """How many of the flagged records in a window a key, or a predicted class, has.

    Of images without scores, how many a key has.
    """

    name: str
    flagged: int


@dataclass(frozen=True, slots=True)
class TailShift:
    """The tail of the p-values that has grown most.

    Its rate is at most ``highest_rate`` while the stream is in-distribution; ``since`` says what
    it has been since the onset.
    """

    event: TailEvent
    highest_rate: float
    since: Onset


@dataclass(frozen=True, slots=True)
class UnscoredShare:
    """The newest images, as many as the rolling window holds, scored or not.

    They lie in event time ``[start_ms, end_ms)``, in milliseconds since the epoch. ``by_status``
    counts those of them without scores, the most first. Images of a status that the settings ignore
    count nowhere. ``bound`` is the highest share that is in order. ``severity`` is that of the
    alert unscored-images, null while it does not fire.
    """

    start_ms: int
    end_ms: int
    images: int
    by_status: tuple[tuple[Status, int], ...]
    bound: float
    severity: Severity | None

    @property
    def unscored(self) -> int:
        """How many have no scores."""
        return sum(count for _, count in self.by_status)

    @property
    def share(self) -> float:
        """Their share of the images."""
        return self.unscored / self.images


@dataclass(frozen=True, slots=True)
class UnscoredAlert:
    """What the monitor sends of images that have no scores.

    ``time_ms`` is the end of the pane at which it was decided. ``share`` is of the newest images,
    ``since`` counts those since the estimated onset: its hits have no scores. ``reasons`` (the
    commonest first, each with its first image) and ``keys`` (the most images first) are evidence
    from the onset on, as far as ``share`` reaches; ``examples`` are first images in order of time.
    ``window`` is the rolling window of scored records, null before the first: it is from before
    ``time_ms`` where nothing was scored since.
    """

    change: Change
    time_ms: int
    share: UnscoredShare
    since: Onset
    reading: DetectorReading
    window: WindowState | None
    reasons: tuple[UnscoredImages, ...] = ()
    keys: tuple[Contribution, ...] = ()
    examples: tuple[UnscoredImages, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockFinding:
    """What the blocks of the stream, or of a key, say beside those of the baseline.

    ``reading`` is of blocks of ``block_ms``, which are compared with ``baseline_blocks`` of the
    baseline, of event time ``[since_ms, until_ms)``, in milliseconds since the epoch. By chance any
    alert of the monitor begins within a time T with a probability of at most T / ``run_time_ms``,
    for a share of ``confidence`` of the baselines: that covers the first ``new_keys`` keys that
    learn a reference, and each later one but for a probability of ``late_risk``.
    """

    reading: BlockReading
    baseline_blocks: int
    block_ms: int
    since_ms: int
    until_ms: int
    run_time_ms: int
    confidence: float
    new_keys: int
    late_risk: float


@dataclass(frozen=True, slots=True)
class MonthlyEffect:
    """The OOD fraction of a calendar month less the baseline's, from their blocks.

    ``month_ms`` is when the month begins, UTC, in milliseconds since the epoch. The difference is
    ``change``, and in ``[low, high]`` at a confidence of 95 %.
    """

    month_ms: int
    blocks: int
    share: float
    baseline_share: float
    change: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """Where the monitors of blocks stand, where they decide.

    ``words`` say what decides, and why. Blocks of ``block_ms`` were judged up to
    ``judged_until_ms`` (null before the first). ``known_keys`` have a reference in the baseline,
    ``new_keys`` learn one, ``waiting_keys`` have no room for that. ``accepted`` counts the changes
    that were accepted.
    """

    words: str
    block_ms: int
    judged_until_ms: int | None
    known_keys: int
    new_keys: int
    waiting_keys: int
    accepted: int
    reading: DetectorReading
    month: MonthlyEffect | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the monitor of the stream, or of a key, says now: see `DriftAlert`."""

    active: bool
    since: Onset
    readings: tuple[DetectorReading, ...]
    block: BlockFinding | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """That an alert of the stream, or of one key, is to be sent: see `DriftAlert`."""

    key: str | None
    change: Change
    verdict: Verdict
    acceptance: Acceptance | None = None


@dataclass(frozen=True, slots=True)
class DriftAlert:
    """What the monitor sends, of the stream or of one key.

    ``key`` is null for the stream. ``time_ms`` is the end of the pane at which it was decided.
    ``window`` is the stream's rolling window, also where a key is concerned; its limits (counts)
    are null before it is full. ``since`` counts the flagged records since the estimated onset.
    ``tail`` is null unless the detector of shifted scores is active.
    ``offsets`` (one range a partition, whole segments that reach into the evidence), ``examples``
    (smallest p-value first), ``keys`` and ``classes`` (most flagged first) are evidence of the
    window; where the alert is of a key, of that key's records alone. ``firing_keys`` counts the
    keys whose monitor is active. ``unscored`` is the share of images without scores beside all
    this, null where the settings leave that out. ``block`` is null unless blocks decide;
    ``acceptance`` unless the alert ends because the key's change was accepted.
    """

    key: str | None
    change: Change
    time_ms: int
    window: WindowState
    firing_limit: int | None
    resolve_limit: int | None
    since: Onset
    readings: tuple[DetectorReading, ...]
    tail: TailShift | None = None
    offsets: tuple[OffsetRange, ...] = ()
    examples: tuple[Example, ...] = ()
    keys: tuple[Contribution, ...] = ()
    classes: tuple[Contribution, ...] = ()
    firing_keys: int = 0
    unscored: UnscoredShare | None = None
    block: BlockFinding | None = None
    acceptance: Acceptance | None = None


@dataclass(frozen=True, slots=True)
class DriftUpdate:
    """What came of a call: summaries taken for the first time, and alerts, all in order."""

    accepted: tuple[SegmentSummary, ...] = ()
    alerts: tuple[DriftAlert, ...] = ()
    unscored: tuple[UnscoredAlert, ...] = ()

    @property
    def decided(self) -> tuple[DriftAlert | UnscoredAlert, ...]:
        """The alerts of all kinds, in order of time; of one pane those of drift first."""
        return tuple(sorted((*self.alerts, *self.unscored), key=lambda alert: alert.time_ms))


class FiringKey(NamedTuple):
    """A key, its firing alert, and the end of the last pane that had a record of it."""

    key: str
    alert: Firing
    seen_ms: int


@dataclass(frozen=True, slots=True)
class DriftSnapshot:
    """The monitor now. ``firing_limit`` is a count, null until the window is full.

    ``window_end_ms`` is the end of the pane of its newest scored record, null before the first.
    ``unscored`` is null before the first image, and where the settings leave it out;
    ``unscored_since_ms`` is when that alert began to fire, null while it does not.
    ``severity`` is null while the stream's alert is inactive. ``late_records`` were counted in a
    later pane than their event time's, which was closed; ``implausible_timestamps`` in the pane of
    the time when they were read. ``watermark_ms`` is null while nothing is known, and
    ``partition_watermarks_ms`` has the partitions that have brought records. ``keys`` are
    remembered, ``keys_active`` of them have an active monitor, ``keys_firing`` a firing alert:
    ``firing_keys``. ``blocks`` is null unless blocks decide.
    """

    state: AlertState
    severity: Severity | None
    window_records: int
    window_flagged: int
    firing_limit: int | None
    readings: tuple[DetectorReading, ...]
    open_panes: int
    late_records: int
    implausible_timestamps: int
    duplicates: int
    watermark_ms: int | None
    partition_watermarks_ms: Mapping[TopicPartition, int]
    keys: int
    keys_active: int
    keys_firing: int
    keys_forgotten: int
    window_end_ms: int | None = None
    unscored: UnscoredShare | None = None
    unscored_reading: DetectorReading | None = None
    unscored_since_ms: int | None = None
    blocks: BlockSnapshot | None = None
    firing_keys: tuple[FiringKey, ...] = ()

    @property
    def fraction(self) -> float | None:
        """The OOD fraction of the window, full or not; None while it is empty."""
        return self.window_flagged / self.window_records if self.window_records else None

    @property
    def bound(self) -> float | None:
        """The OOD fraction that fires; None until the window is full."""
        return None if self.firing_limit is None else self.firing_limit / self.window_records
