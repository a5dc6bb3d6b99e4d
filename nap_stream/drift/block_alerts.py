"""Blocks that decide: the plan of a baseline, and the alerts of the stream and of its keys.

The blocks are those of `nap_stream.core.block_monitors`. All depends on the panes and on the
acceptances alone: a block is judged with the pane at whose end it is over, or with the first one
after that, and an acceptance counts from the first pane on that ends when it takes effect, or
later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.alert_state import Detector
from nap_stream.core.block_monitors import BlockMonitors
from nap_stream.core.block_plan import MIN_BLOCKS, BlockPlan, plan_blocks, references_of
from nap_stream.core.block_readings import BlockReading, JudgedBy
from nap_stream.core.blocks import Blocks
from nap_stream.core.hidden_keys import HiddenKeys, is_hash
from nap_stream.core.learned_references import LEARN_BLOCKS
from nap_stream.core.panes import NO_KEY, ClosedPane, key_text
from nap_stream.core.sequential import Onset
from nap_stream.drift.key_alerts import FiringKeys
from nap_stream.drift.months import MonthlyShares
from nap_stream.drift.records import (
    BaselineFacts,
    BlockFinding,
    BlockSnapshot,
    CalibrationFacts,
    Decision,
    DetectorReading,
    FiringKey,
    Verdict,
)
from nap_stream.errors import ConfigError
from nap_stream.records import Acceptance
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings
from nap_stream.text import duration, rfc3339


@dataclass(frozen=True, slots=True, eq=False)
class BlockWatch:
    """The baseline whose blocks decide, and what the monitors of blocks are set to."""

    baseline: BaselineFacts
    plan: BlockPlan


def block_watch(settings: DriftSettings, calibration: CalibrationFacts) -> BlockWatch | None:
    """Tell what blocks decide by; None where single records do.

    That is so where the calibration has no baseline, or ``drift.blocks`` is off.

    Raises:
        ConfigError: The baseline has other keys, counts records otherwise or has no blocks of a
            kind of time, or a block is longer than the promised time or no whole panes.
    """
    baseline = calibration.baseline
    if baseline is None or settings.blocks == "off":
        return None
    by = None if settings.keys is None else settings.keys.by
    if by is not None and by != baseline.by:
        raise ConfigError(
            f"the keys are told apart by {by}, those of the baseline by {baseline.by or 'nothing'}",
            "drift.keys.by",
            f"Set it to {baseline.by}, or make another baseline"
            if baseline.by
            else "Make a baseline with keys, or set drift.keys to null",
        )
    _require_counts(settings, baseline)
    blocks = baseline.blocks if by is not None else _of_stream(baseline.blocks)
    records = int(baseline.blocks.of(NO_KEY).records.sum())
    run_time_ms = settings.run_time_ms(records, baseline.until_ms - baseline.since_ms)
    if run_time_ms < blocks.block_ms:
        raise ConfigError(
            f"one false alarm in {duration(run_time_ms)} cannot be promised in blocks of "
            f"{duration(blocks.block_ms)}",
            "drift.false_alarms",
            "Ask for fewer false alarms, or set drift.blocks to off",
        )
    references = references_of(blocks, baseline.kinds)
    if references.blind_kinds:
        raise ConfigError(
            f"the baseline has fewer than {MIN_BLOCKS} blocks of the whole stream at "
            f"{', '.join(references.blind_kinds)}: nothing watches it then, and nothing can be "
            "promised",
            "calibration",
            "Make a baseline of a longer stretch, or with --times none",
        )
    plan = plan_blocks(
        references,
        run_time_ms=run_time_ms,
        confidence=settings.confidence,
    )
    return BlockWatch(baseline, plan)


def keys_stored_otherwise(calibration: CalibrationFacts, hidden: HiddenKeys) -> tuple[str, ...]:
    """A warning where a baseline names keys otherwise than the log stores them now; else nothing.

    That a hash was made with another secret cannot be seen.
    """
    baseline = calibration.baseline
    if baseline is None or baseline.by is None:
        return ()
    names = [name for name in baseline.blocks.keys if name != NO_KEY]
    now = [key_text(hidden.of_stored(baseline.by, name.encode())) for name in names]
    clear = sum(name != stored for name, stored in zip(names, now, strict=True))
    hashed = sum(is_hash(name.encode()) for name in names) if not hidden.hides else 0
    if not clear + hashed:
        return ()
    was, are = ("in clear", "are hashed or dropped") if clear else ("as hashes", "are in clear")
    held = f"the baseline holds {clear or hashed:,} of its {len(names):,} keys {was}"
    means = "no camera is compared with its own past, and the calibration's files hold the keys"
    advice = "Make a baseline of what the log stores now"
    return (f"{held}, and those of the log {are} (log.keys): {means} as they were. {advice}",)


def _require_counts(settings: DriftSettings, baseline: BaselineFacts) -> None:
    """Refuse a monitor whose blocks would not have the records that the baseline's have."""
    own_ms, block_ms = settings.pane_ms if settings.one_per_pane else None, baseline.blocks.block_ms
    if own_ms != baseline.one_per_pane_ms:
        has_keys = settings.keys is not None
        raise ConfigError(
            f"the blocks of the baseline count {_counted(baseline.one_per_pane_ms)}, the monitor "
            f"{_counted(own_ms)}",
            "drift.keys.one_per_pane, drift.pane_ms" if has_keys else "drift.keys",
            "Set them as they were, or make another baseline"
            if has_keys
            else "Set it as it was, or make another baseline without keys",
        )
    # A pane counts in the block in which it begins.
    if block_ms % settings.pane_ms:
        raise ConfigError(
            f"blocks of {block_ms:,} ms are no whole number of panes of {settings.pane_ms:,} ms",
            "drift.pane_ms",
            "Set it to a divisor of the block's length, or make another baseline with --block",
        )


def _counted(one_per_pane_ms: int | None) -> str:
    if one_per_pane_ms is None:
        return "all records"
    return f"one record of a key in {one_per_pane_ms} ms"


def _of_stream(blocks: Blocks) -> Blocks:
    """The blocks of the whole stream alone, as if nothing told its keys apart."""
    return replace(blocks.of(NO_KEY), keys=(NO_KEY,))


@dataclass(frozen=True, slots=True)
class BlocksDocument:
    """What the alerts of blocks know, but for arrays. ``accepted`` are numbers of acceptances."""

    keys: tuple[str, ...]
    firing: tuple[FiringKey, ...]
    accepted: tuple[int, ...]


class BlockAlerts:
    """The monitors of blocks of the stream and of each key, and the alerts of keys that fire.

    They go on from the state of others with the same watch and settings, if given.

    Raises:
        ValueError: The parts of the state do not belong together.
        KeyError: It lacks an array.
    """

    detector = Detector.BLOCKS

    def __init__(
        self,
        watch: BlockWatch,
        drift: DriftSettings,
        alerts: AlertSettings,
        document: BlocksDocument | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._watch = watch
        references, keys = watch.plan.references, drift.keys
        self._block_ms = references.block_ms
        # Each takes a look at every key of the baseline.
        self._known_keys, self._fewest = len(references.known), watch.plan.fewest_blocks
        self._max_keys = 1 if keys is None else keys.max_keys
        repeat_ms = round(alerts.repeat_interval_s * 1000)
        self.monitors = BlockMonitors(watch.plan, self._max_keys, repeat_ms)
        self._months = MonthlyShares(watch.baseline.blocks.of(NO_KEY))
        self._accepted: set[int] = set()
        self._judged_until_ms: int | None = None
        self._new_keys = self._waiting_keys = 0
        if document is not None and arrays is not None:
            self.monitors.restore(document.keys, arrays)
            self._months.restore(arrays)
            self._accepted.update(document.accepted)
            until = arrays["judged_until"].tolist()
            self._judged_until_ms = until[0] if until else None
        self._firing = FiringKeys(
            self,
            max_firing=0 if keys is None else keys.max_firing,
            silence_ms=self.monitors.silence_ms,
            alerts=alerts,
            firing=() if document is None else document.firing,
        )
        self._count_new()

    def state(self) -> tuple[BlocksDocument, dict[str, NDArray[Any]]]:
        """Give all that they know: a document, and exact arrays by name."""
        document = BlocksDocument(
            self.monitors.names(),
            tuple(self._firing.by_key.values()),
            tuple(sorted(self._accepted)),
        )
        until = [] if self._judged_until_ms is None else [self._judged_until_ms]
        arrays = {"judged_until": np.array(until, dtype=np.int64)}
        return document, self.monitors.arrays() | self._months.arrays() | arrays

    @property
    def firing(self) -> Mapping[str, FiringKey]:
        """The keys that fire."""
        return self._firing.by_key

    @property
    def keys_active(self) -> int:
        """How many keys have an active monitor."""
        return self.monitors.active_count - self.verdict(NO_KEY).active

    def push(
        self, pane: ClosedPane, end_ms: int, acceptances: Iterable[Acceptance]
    ) -> list[Decision]:
        """Take the next pane, which ends at ``end_ms``; give what is to be sent of keys, by key.

        ``acceptances`` are all that are known, in any order.
        """
        decisions = self._accept(acceptances, end_ms)
        decisions += self._firing.close_silent(pane, end_ms)
        if len(self.monitors) + len(pane.keys) > self._max_keys:
            self._firing.note_last()
        readings = (*self.monitors.update(pane), *self.monitors.advance(end_ms))
        self._months.push(pane)
        active = set[str]()
        for each in readings:
            self._judged_until_ms = each.end_ms
            active.update(each.keys[place] for place in np.flatnonzero(each.active))
        if readings:
            self._count_new()
        return self._firing.step(active - {NO_KEY}, end_ms, decisions)

    def knows(self, key: str) -> bool:
        """Whether a key is remembered."""
        return key in self.monitors

    def verdict(self, key: str) -> Verdict:
        """Say where the monitor of a key stands, or with `NO_KEY` that of the stream."""
        found = self.monitors.reading(key)
        reading = DetectorReading.of_e_detector(
            self.detector, found.log_statistic, found.log_threshold, active=found.active
        )
        since = Onset(0, found.onset_ms, found.records, found.flagged)
        return Verdict(found.active, since, (reading,), self._finding(key, found))

    def snapshot(self) -> BlockSnapshot:
        """Say where they stand."""
        (reading,) = self.verdict(NO_KEY).readings
        return BlockSnapshot(
            words=self._words(),
            block_ms=self._block_ms,
            judged_until_ms=self._judged_until_ms,
            known_keys=self._known_keys,
            new_keys=self._new_keys,
            waiting_keys=self._waiting_keys,
            accepted=len(self._accepted),
            reading=reading,
            month=self._months.effect(),
        )

    def is_new(self, acceptance: Acceptance) -> bool:
        """Whether an acceptance counts, and has not taken effect yet."""
        baseline = self._watch.baseline
        # One from before the baseline was made is part of what it takes for usual, unless it is of
        # a change that came after the stretch.
        is_later = acceptance.made_ms >= baseline.made_ms
        is_later |= acceptance.from_ms >= baseline.until_ms
        return is_later and acceptance.number not in self._accepted

    def _count_new(self) -> None:
        """Count new keys: it takes a look at every key, and only a block changes them."""
        self._new_keys = self.monitors.new_count
        self._waiting_keys = self.monitors.waiting_count

    def _words(self) -> str:
        baseline = self._watch.baseline
        since, until = (rfc3339(t)[:16] for t in (baseline.since_ms, baseline.until_ms))
        length = duration(self._block_ms)
        return f"blocks of {length} decide, against the baseline of {since}Z to {until}Z"

    def _accept(self, acceptances: Iterable[Acceptance], end_ms: int) -> list[Decision]:
        """Begin anew with the keys of acceptances that take effect now."""
        due = [each for each in acceptances if each.effective_ms <= end_ms and self.is_new(each)]
        decisions: list[Decision] = []
        for each in sorted(due, key=lambda one: (one.effective_ms, one.number)):
            self._accepted.add(each.number)
            if each.key != NO_KEY:
                decisions += self._firing.accept(each)
                self.monitors.accept(each.key, each.from_ms)
        if due:
            self._count_new()
        return decisions

    def _finding(self, key: str, found: BlockReading) -> BlockFinding:
        plan, baseline = self._watch.plan, self._watch.baseline
        compared = self._fewest
        if found.judged_by is JudgedBy.LEARNED:
            compared = LEARN_BLOCKS
        elif found.judged_by is JudgedBy.OWN:
            own = plan.references.blocks_by_kind(key)
            compared = min((size for size in own if size), default=0)
        return BlockFinding(
            reading=found,
            baseline_blocks=compared,
            block_ms=self._block_ms,
            since_ms=baseline.since_ms,
            until_ms=baseline.until_ms,
            run_time_ms=plan.run_time_ms,
            confidence=plan.confidence,
            new_keys=plan.new_keys,
            late_risk=plan.late_risk,
        )
