"""Event-time panes and the rolling window over them. Merging is associative and commutative."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Pane:
    """Counts of the scored records whose event time lies in ``[start_ms, start_ms + width)``.

    ``records`` is how many were scored, ``flagged`` how many of them have a p-value ≤ alpha.
    """

    start_ms: int
    records: int
    flagged: int

    def __post_init__(self) -> None:
        if not 0 <= self.flagged <= self.records or self.records == 0:
            raise ValueError(
                f"expected 0 <= flagged <= records and records > 0, "
                f"got {self.flagged = }, {self.records = }"
            )


def panes_of(
    event_times_ms: Iterable[int], flags: Iterable[bool], width_ms: int
) -> tuple[Pane, ...]:
    """Count records and flags by pane.

    Args:
        event_times_ms: Event time of each scored record, milliseconds since the epoch.
        flags: Whether each record is flagged out-of-distribution.
        width_ms: Width of a pane in milliseconds, at least 1.

    Returns:
        The panes that hold records, ordered by start.
    """
    counts: dict[int, tuple[int, int]] = {}
    for time_ms, flag in zip(event_times_ms, flags, strict=True):
        start = time_ms - time_ms % width_ms
        records, flagged = counts.get(start, (0, 0))
        counts[start] = (records + 1, flagged + int(flag))
    return tuple(Pane(start, *counts[start]) for start in sorted(counts))
