"""The figures of a report: what the log tells of a period."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from nap_stream.clock import Progress
from nap_stream.core.panes import key_text
from nap_stream.errors import ChainBrokenError, ConfigError, NapStreamError
from nap_stream.report.counts import Count, Tally, chart_width_ms, tally
from nap_stream.report.history import History, Span, history
from nap_stream.scored_log.events import read_events
from nap_stream.scored_log.files import LogFile
from nap_stream.scored_log.query import (
    HOUR_MS,
    Query,
    listed,
    most_anomalous,
    require_partitions,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import Defect, VerifyReport
from nap_stream.scored_log.verify.run import verify
from nap_stream.text import rfc3339

Pictures = Callable[[str, int], str]
"""From the SHA-256 of an image, and when it was scored, to the ``data:`` address of a small one.

It raises `NapStreamError` where there is none; that says why."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a configuration and its calibration promise; see `nap_stream.core.detection`."""

    bound: float
    run_length: float
    key_by: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is to tell.

    Of ``topic``, or of all; of event times ``[since_ms, until_ms)``, milliseconds since the epoch.
    Beside it, where given, of another stretch of time, ``compared``; or of what the model whose
    fingerprint begins with ``model`` has scored, against the others. ``images`` are the most
    anomalous ones, so many of them.
    """

    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    compared: tuple[int | None, int | None] | None = None
    model: str | None = None
    stated: Stated | None = None
    verified: bool = True
    images: int = 12


class Comparison(NamedTuple):
    """Counts of two sets of rows, and what these are."""

    names: tuple[str, str]
    first: Tally
    second: Tally


@dataclass(frozen=True)
class Figures:
    """All that a report says of ``[since_ms, until_ms)``.

    ``held`` are the first and last event time of the files that were looked at, null where they
    have no rows. ``verified`` is null where that was not asked for. ``unread`` are the files whose
    rows are in no figure, and why. ``anomalous`` are rows by the log's columns, the smallest
    p-value first, with ``event_ms``, the key as text, and ``picture``, the address of a small one;
    empty where ``no_picture`` says why.
    """

    asked: Asked
    root: str
    topics: tuple[str, ...]
    since_ms: int
    until_ms: int
    made_ms: int
    held: Span | None
    key_by: str
    tally: Tally
    history: History
    defects: tuple[Defect, ...]
    verified: VerifyReport | None
    unread: tuple[str, ...]
    anomalous: tuple[dict[str, Any], ...]
    comparison: Comparison | None

    @cached_property
    def judged(self) -> list[tuple[tuple[str, str, str], Count]]:
        """Topics, models and calibrations, by when they first decided."""
        return sorted(self.tally.judged.items(), key=lambda each: each[1].first_ms)


def gather(
    store: SegmentStore,
    asked: Asked,
    *,
    now_ms: int,
    pictures: Pictures | None = None,
    advance: Progress | None = None,
) -> Figures:
    """Put a report's figures together. ``advance`` is told of the files that are verified.

    Without a beginning the period begins with the first row; without an end it ends now, or, where
    neither is given, with the last row.

    Raises:
        LogRootError: There is no log at the root, or it holds no topics.
        ConfigError: The log has no such topic or model.
        ScoredLogError: The store cannot be read.
    """
    partitions = require_partitions(store, Query(topic=asked.topic))
    unread: list[ChainBrokenError] = []
    defects: list[Defect] = []
    told = history(read_events(store, defects=defects), asked.topic)
    query = Query(topic=asked.topic, since_ms=asked.since_ms, until_ms=asked.until_ms)
    files = list(listed(store, query, unread))
    held = _held(files or list(listed(store, Query(topic=asked.topic), unread)))
    since_ms, until_ms = _period(asked, held, now_ms)
    width_ms = min(chart_width_ms(until_ms - since_ms), HOUR_MS)
    key_by = (asked.stated and asked.stated.key_by) or told.key_by

    def counted(wanted: Query, own: Sequence[LogFile]) -> Tally:
        return tally(store, own, wanted, width_ms=width_ms, key_by=key_by, unread=unread)

    found = counted(query, files)
    rows = most_anomalous(store, query, asked.images, unread=unread).to_pylist()
    comparison = None
    if asked.compared is not None:
        query = replace(query, since_ms=asked.compared[0], until_ms=asked.compared[1])
        other = counted(query, list(listed(store, query, unread)))
        ends = (rfc3339(e)[:16].replace("T", " ") if e is not None else "…" for e in asked.compared)
        comparison = Comparison((" to ".join(ends), "This period"), other, found)
    elif asked.model is not None:
        own, rest = _models(found, asked.model)
        first, second = (counted(replace(query, models=each), files) for each in (rest, own))
        comparison = Comparison((", ".join(each[:12] for each in rest), own[0][:12]), first, second)
    verified = None
    if asked.verified:
        verified = verify(store, topic=asked.topic, advance=advance, may_be_empty=True)
        defects = [*verified.defects, *defects]
    return Figures(
        asked=asked,
        root=store.root,
        topics=tuple(sorted({each.topic for each in partitions})),
        since_ms=since_ms,
        until_ms=until_ms,
        made_ms=now_ms,
        held=held,
        key_by=key_by,
        tally=found,
        history=told.within(since_ms, until_ms),
        defects=tuple(dict.fromkeys(defects)),
        verified=verified,
        unread=tuple(dict.fromkeys(f"{error.where}: {error.problem}" for error in unread)),
        anomalous=tuple(_anomalous(row, pictures) for row in rows),
        comparison=comparison,
    )


def _held(files: Sequence[LogFile]) -> Span | None:
    ends = [(file.footer.min_event_time_ms, file.footer.max_event_time_ms) for file in files]
    known = [time for pair in ends for time in pair if time is not None]
    return (min(known), max(known)) if known else None


def _period(asked: Asked, held: Span | None, now_ms: int) -> Span:
    first, last = (now_ms, now_ms) if held is None else held
    since_ms = first if asked.since_ms is None else asked.since_ms
    end_ms = last + 1 if asked.since_ms is None else max(now_ms, since_ms + 1)
    until_ms = end_ms if asked.until_ms is None else asked.until_ms
    return min(since_ms, until_ms - 1), until_ms


def _models(found: Tally, begins: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The model that is meant, alone, and the others."""
    models = {model for _, model, _ in found.judged}
    own = tuple(model for model in models if model.startswith(begins))
    rest = tuple(sorted(models - {*own}))
    if len(own) != 1 or not rest:
        raise ConfigError(
            f"expected how one of several models' fingerprints begins, got {begins!r}; the rows of "
            f"the period are of {', '.join(sorted(models)) or 'none'}",
            "--compare-model",
        )
    return own, rest


def _anomalous(row: dict[str, Any], pictures: Pictures | None) -> dict[str, Any]:
    event_ms, scored_ms = (
        round(row[f"{name}_time"].timestamp() * 1000) for name in ("event", "scored")
    )
    picture, why = "", "No store of images was named."
    if pictures is not None:
        try:
            picture = pictures(row["sha256"] or "", scored_ms)
        except NapStreamError as error:
            why = f"No picture: {error.problem}."
    key = key_text(row["key"])
    return {**row, "key": key, "event_ms": event_ms, "picture": picture, "no_picture": why}
