"""A stretch of the log beside a baseline: by how much the OOD fraction has changed.

A baseline is fixed, so that what changes slowly adds up. With enough blocks any change is
significant; what counts is how large it is, and how sure that is. So this is an effect with an
interval, and no test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nap_stream.baselines.counting import count_blocks
from nap_stream.baselines.spool import RecordSpool
from nap_stream.baselines.stretch import Stretch, StretchQuery, read_stretch
from nap_stream.calibration.calibration import Calibration
from nap_stream.clock import Progress
from nap_stream.core.blocks import Blocks, Effect, effect
from nap_stream.core.hidden_keys import CLEAR, HiddenKeys
from nap_stream.errors import ConfigError
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.settings.drift import KeySettings
from nap_stream.settings.topics import TopicSelection


@dataclass(frozen=True, slots=True)
class Comparison:
    """The effect of one key, or of the stream (an empty one), in one part of the stretch.

    ``month`` is as in 2026-05; null for the whole stretch. ``effect`` is null where the baseline
    does not have the key.
    """

    key: str
    month: str | None
    blocks: int
    records: int
    effect: Effect | None

    def document(self) -> dict[str, Any]:
        """For machines; shares are fractions, and an interval without ends is null."""
        found = self.effect
        told: dict[str, Any] = {
            "key": self.key,
            "month": self.month,
            "blocks": self.blocks,
            "records": self.records,
        }
        if found is None:
            return told | dict.fromkeys(("share", "baseline_share", "difference", "low", "high"))
        return told | {
            "share": found.share,
            "baseline_share": found.baseline_share,
            "difference": found.difference,
            "low": found.low if np.isfinite(found.low) else None,
            "high": found.high if np.isfinite(found.high) else None,
            "confidence": found.confidence,
        }


def query_like(
    calibration: Calibration,
    topic: str | None,
    since_ms: int,
    until_ms: int,
    *,
    hidden: HiddenKeys = CLEAR,
    reads: TopicSelection | None = None,
) -> StretchQuery:
    """Ask for a stretch whose records are counted as those of the baseline were.

    Keys that were stored in clear are ``hidden`` now. ``reads`` is as in `StretchQuery`.

    Raises:
        ConfigError: The calibration has no baseline.
    """
    baseline = calibration.document.baseline
    if baseline is None:
        raise ConfigError(
            "the calibration has no baseline to compare with",
            f"calibration {calibration.fingerprint[:16]}",
            "Make one with `nap-stream baseline`",
        )
    keys = None
    if baseline.by is not None:
        keys = KeySettings(by=baseline.by, one_per_pane=baseline.one_per_pane)
    name, pane_ms = topic or baseline.topic, baseline.pane_ms
    return StretchQuery(name, since_ms, until_ms, keys, pane_ms, hidden=hidden, reads=reads)


def blocks_like(calibration: Calibration, stretch: Stretch) -> Blocks:
    """The blocks of a stretch as the baseline would have counted them, by its p-values."""
    baseline = calibration.document.baseline
    assert baseline is not None

    def judge(
        fused: NDArray[np.float64], class_id: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        judged = calibration.judge_fused(fused, class_id)
        return judged.ood_p_value, judged.is_ood

    return count_blocks(stretch, judge, baseline.block_ms, baseline.pane_ms)


def compare_stretch(
    store: SegmentStore,
    query: StretchQuery,
    calibration: Calibration,
    advance: Progress,
    *,
    by_month: bool,
) -> list[Comparison]:
    """Read a stretch, as `query_like` asks for it, and compare it with the baseline.

    Raises:
        ConfigError, CalibrationError, LogRootError, ScoredLogError: As
            `nap_stream.baselines.stretch.read_stretch`.
    """
    baseline = calibration.facts.baseline
    assert baseline is not None
    with RecordSpool() as spool:
        stretch = read_stretch(store, query, calibration, spool, advance)
        later = blocks_like(calibration, stretch)
    return list(compare(baseline.blocks, later, by_month=by_month))


def compare(baseline: Blocks, later: Blocks, *, by_month: bool) -> Iterator[Comparison]:
    """Compare the stream and each key with the baseline; the stream first, keys in order.

    By calendar month of event time (UTC) where asked for: a block is of the month in which it
    begins.
    """
    months = _months(later) if by_month else np.zeros(len(later), np.int64)
    for number, name in enumerate(later.keys):
        for month in np.unique(months[later.key == number]).tolist():
            own = later.chosen((later.key == number) & (months == month))
            known = name in baseline.keys and len(baseline.of(name)) > 0
            yield Comparison(
                name,
                _month_name(month) if by_month else None,
                len(own),
                int(own.records.sum()),
                effect(baseline, own, name) if known else None,
            )


def _months(blocks: Blocks) -> NDArray[np.int64]:
    """The calendar month in which each block begins, in months since January of year 0."""
    starts, place = np.unique(blocks.start_ms, return_inverse=True)
    moments = (datetime.fromtimestamp(start / 1000, UTC) for start in starts.tolist())
    numbers = np.array([moment.year * 12 + moment.month - 1 for moment in moments], np.int64)
    return numbers[place]


def _month_name(month: int) -> str:
    return f"{month // 12:04}-{month % 12 + 1:02}"
