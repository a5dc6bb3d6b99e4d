"""The figures of a report: what the log tells of a period."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from nap_stream.clock import Progress
from nap_stream.core.blocks import MIN_DAYS
from nap_stream.core.panes import key_text
from nap_stream.errors import ChainBrokenError, ConfigError, NapStreamError
from nap_stream.report.counts import (
    Count,
    Tally,
    chart_width_ms,
    first_image_ms,
    tally,
    worked,
)
from nap_stream.report.history import History, Span, history, streams_of, topics_read
from nap_stream.scored_log.events import Event, read_events
from nap_stream.scored_log.files import LogFile
from nap_stream.scored_log.index import HOUR_MS
from nap_stream.scored_log.proof.checkpoint import FoundCheckpoint
from nap_stream.scored_log.proof.note import PublicKey
from nap_stream.scored_log.query import Query, listed, most_anomalous, require_partitions
from nap_stream.scored_log.seals import told_pruned
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
from nap_stream.scored_log.verify.report import AnchorReport, Defect, VerifyReport
from nap_stream.scored_log.verify.run import verify
from nap_stream.scored_log.verify.sealed import unsigned_seals
from nap_stream.text import EARLIEST_MS, LATEST_MS, rfc3339
from nap_stream.text import listed as in_short

if TYPE_CHECKING:
    from nap_stream.baselines.compare import Comparison as BesideBaseline

Pictures = Callable[[str, int], str]
"""From the SHA-256 of an image, and when it was scored, to the ``data:`` address of a small one.

It raises `NapStreamError` where there is none; that says why."""
Months = Callable[[Span], "Sequence[BesideBaseline]"]
"""From a period to its calendar months beside a baseline.

It raises `NapStreamError` where they cannot be compared; that says why."""


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
    fingerprint begins with ``model`` has scored, against the others. ``deep`` is to verify every
    value too, not footers alone. ``images`` are the most anomalous ones, so many of them.
    """

    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    compared: tuple[int | None, int | None] | None = None
    model: str | None = None
    stated: Stated | None = None
    verified: bool = True
    deep: bool = False
    images: int = 12


class Comparison(NamedTuple):
    """Counts of two sets of rows, and what these are; ``shared`` is the time that is in both."""

    names: tuple[str, str]
    first: Tally
    second: Tally
    shared: Span | None = None
    pruned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """All that a report says of ``[since_ms, until_ms)``.

    ``held`` are the first and last event time of the files that were looked at, null where they
    have no rows; ``outside`` counts the log's rows that are not of this period. ``begins`` says
    with what a period begins that was not asked for. ``verified`` and ``anchors`` are null where
    that was not asked for. ``unread`` are the files whose rows are missing, and why; ``pruned``
    says who pruned rows of the period. ``anomalous`` are rows by the log's columns, the smallest
    p-value first, with ``event_ms``, the key as text, and ``picture``, the address of a small one;
    empty where ``no_picture`` says why. ``months`` are of the stream, beside the baseline, where
    one was given; ``no_months`` says why not. ``streams`` are as `streams_of` gives them.
    """

    asked: Asked
    root: str
    topics: tuple[str, ...]
    since_ms: int
    until_ms: int
    made_ms: int
    held: Span | None
    outside: int
    begins: str
    key_by: str
    tally: Tally
    history: History
    defects: tuple[Defect, ...]
    verified: VerifyReport | None
    anchors: AnchorReport | None
    unread: tuple[str, ...]
    pruned: tuple[str, ...]
    anomalous: tuple[dict[str, Any], ...]
    comparison: Comparison | None
    months: "Sequence[BesideBaseline]" = ()
    no_months: str = ""
    streams: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def names_of(self, topic: str) -> frozenset[str]:
        """The streams that a topic is of."""
        names = frozenset(name for name, own in self.streams.items() if topic in own)
        return names or frozenset({topic})

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
    months: Months | None = None,
    signed: Iterable[FoundCheckpoint] | None = None,
    keys: Sequence[PublicKey] = (),
    advance: Progress | None = None,
) -> Figures:
    """Put a report's figures together. ``advance`` is told of the files that are verified.

    The chains are compared with the checkpoints ``signed``, where these are given; what says that
    rows were pruned must be signed by one of their ``keys`` then.

    Without a beginning the period begins with the first run, or with the image that was scored
    first where that was before it; without an end it ends now, or, where neither is given, with the
    last row that is not later.

    Raises:
        LogRootError: There is no log at the root.
        ConfigError: The log has no such topic or model, or no checkpoint is signed by a known key.
        ScoredLogError: The store cannot be read.
    """
    partitions = require_partitions(store, Query(topic=asked.topic))
    unread: list[ChainBrokenError] = []
    defects: list[Defect] = []
    topics = tuple(sorted({each.topic for each in partitions}))
    told, streams = _history(list(read_events(store, defects=defects)), asked, topics)
    every = list(listed(store, Query(topic=asked.topic), unread))
    held = _held(every)
    since_ms, begins = _beginning(store, asked, told, every, unread)
    until_ms = _end(asked, since_ms, held, now_ms)
    since_ms = min(now_ms if since_ms is None else since_ms, until_ms - 1)
    query = Query(topic=asked.topic, since_ms=since_ms, until_ms=until_ms)
    files = _reaching(every, query)
    width_ms = min(chart_width_ms(until_ms - since_ms), HOUR_MS)
    key_by = (asked.stated and asked.stated.key_by) or told.key_by

    def counted(wanted: Query, own: Sequence[LogFile], unit_ms: int | None = None) -> Tally:
        return tally(
            *(store, own, wanted),
            width_ms=width_ms,
            key_by=key_by,
            unread=unread,
            unit_ms=unit_ms,
        )

    beside = beside_files = unit_ms = None
    if asked.compared is not None:
        beside = replace(query, since_ms=asked.compared[0], until_ms=asked.compared[1])
        beside_files = _reaching(every, beside)
        unit_ms = _unit_ms([_shared(beside, _held(beside_files)), (since_ms, until_ms)], width_ms)
    found = counted(query, files, unit_ms)
    own = told.within(since_ms, until_ms)
    telling = _telling_of_runs(every, files, until_ms)
    runs = worked(store, telling, own.runs, (since_ms, until_ms), unread)
    rows = most_anomalous(store, query, asked.images, files=files, unread=unread).to_pylist()
    comparison = None
    if beside is not None and beside_files is not None and asked.compared is not None:
        other = counted(beside, beside_files, unit_ms)
        ends = (rfc3339(e)[:16].replace("T", " ") if e is not None else "…" for e in asked.compared)
        names = (" to ".join(ends), "This period")
        shared = _shared(beside, (since_ms, until_ms))
        gone = tuple(told_pruned(store, partitions, *asked.compared))
        comparison = Comparison(names, other, found, shared, gone)
    elif asked.model is not None:
        model, rest = _models(found, asked.model)
        spans = [_judged_by(found, each) for each in (rest, model)]
        unit_ms = _unit_ms(spans, width_ms)
        first, second = (
            counted(replace(query, models=each), files, unit_ms) for each in (rest, model)
        )
        names = (in_short([each[:12] for each in rest]), model[0][:12])
        comparison = Comparison(names, first, second)
    by_month, no_months = _by_month(months, (since_ms, until_ms))
    verified = anchors = None
    if asked.verified:
        verified = verify(
            store, deep=asked.deep, topic=asked.topic, advance=advance, may_be_empty=True
        )
        if signed is not None:
            anchors = compare_with_checkpoints(store, verified.heads, signed, asked.topic)
            defects += [*anchors.defects, *unsigned_seals(store, verified.pruned, keys)]
        defects = [*verified.defects, *defects]
    lost = {error.where for error in unread}
    return Figures(
        asked=asked,
        root=store.root,
        streams=streams,
        topics=topics,
        since_ms=since_ms,
        until_ms=until_ms,
        made_ms=now_ms,
        held=held,
        outside=sum(file.footer.rows for file in every if file.path not in lost) - found.all.rows,
        begins=begins,
        key_by=key_by,
        tally=found,
        history=replace(own, runs=tuple(runs)),
        defects=tuple(dict.fromkeys(defects)),
        verified=verified,
        anchors=anchors,
        pruned=tuple(told_pruned(store, partitions, since_ms, until_ms)),
        unread=tuple(dict.fromkeys(f"{error.where}: {error.problem}" for error in unread)),
        anomalous=tuple(_anomalous(row, pictures, key_by, own.erasures) for row in rows),
        comparison=comparison,
        months=by_month,
        no_months=no_months,
    )


def _history(
    events: Sequence[Event], asked: Asked, topics: Sequence[str]
) -> tuple[History, Mapping[str, frozenset[str]]]:
    """What happened to the streams of topics, and which topics each is of."""
    read = topics_read(events, topics)
    streams = streams_of(read, topics)
    own = None if asked.topic is None else streams.keys()
    return history(events, own, read), streams


def _by_month(months: Months | None, period: Span) -> "tuple[Sequence[BesideBaseline], str]":
    """The months of a period beside the baseline, or why not."""
    try:
        return () if months is None else months(period), ""
    except NapStreamError as error:
        return (), str(error)


def _unit_ms(spans: Sequence[Span | None], width_ms: int) -> int:
    """What two stretches are counted by: hours, where both can have enough of them.

    Days come of them where there are enough.
    """
    least = min(0 if span is None else span[1] - span[0] for span in spans)
    return HOUR_MS if least >= MIN_DAYS * HOUR_MS else width_ms


def _shared(query: Query, span: Span | None) -> Span | None:
    """What of a span is in the time that a query asks for."""
    if span is None:
        return None
    first_ms, last_ms = (query.since_ms or EARLIEST_MS, query.until_ms or LATEST_MS)
    found = (max(first_ms, span[0]), min(last_ms, span[1]))
    return found if found[0] < found[1] else None


def _judged_by(found: Tally, models: Sequence[str]) -> Span:
    counts = [count for (_, model, _), count in found.judged.items() if model in models]
    return min(count.first_ms for count in counts), max(count.last_ms for count in counts) + 1


def _held(files: Sequence[LogFile]) -> Span | None:
    ends = [(file.footer.min_event_time_ms, file.footer.max_event_time_ms) for file in files]
    known = [time for pair in ends for time in pair if time is not None]
    return (min(known), max(known)) if known else None


def _reaching(files: Sequence[LogFile], query: Query) -> list[LogFile]:
    """Those of some files that can have rows of a query's time."""
    since_ms = EARLIEST_MS if query.since_ms is None else query.since_ms
    until_ms = LATEST_MS + 1 if query.until_ms is None else query.until_ms
    ends = ((each, _held([each])) for each in files)
    return [each for each, span in ends if span and span[0] < until_ms and span[1] >= since_ms]


def _telling_of_runs(
    every: Sequence[LogFile], files: Sequence[LogFile], until_ms: int
) -> list[LogFile]:
    """The files of a period, and of each chain the first one after it, and the last.

    What was scored after the period proves that a run was at work to its end.
    """
    later = (each for each in reversed(every) if (span := _held([each])) and span[0] >= until_ms)
    firsts = {file.partition: file for file in later}
    lasts = {file.partition: file for file in every}
    found = (*files, *firsts.values(), *lasts.values())
    return list({file.path: file for file in found}.values())


def _beginning(
    store: SegmentStore,
    asked: Asked,
    told: History,
    files: Sequence[LogFile],
    unread: list[ChainBrokenError],
) -> tuple[int | None, str]:
    """When the period begins, null of a log without rows and runs, and with what."""
    if asked.since_ms is not None:
        return asked.since_ms, ""
    firsts = {file.partition: file for file in reversed(files)}
    found = first_image_ms(store, list(firsts.values()), unread)
    held = _held(files)
    run_ms = min((run.start_ms for run in told.runs), default=None)
    if run_ms is not None and (found is None or run_ms <= found[0]):
        if held is None or run_ms <= held[1]:
            return run_ms, "the first run"
    elif found is not None:
        return found[1], "the image that was scored first"
    return (None, "") if held is None else (held[0], "the earliest image")


def _end(asked: Asked, since_ms: int | None, held: Span | None, now_ms: int) -> int:
    if asked.until_ms is not None:
        return asked.until_ms
    least = now_ms if since_ms is None else since_ms + 1
    if asked.since_ms is None and held is not None:
        return max(least, min(held[1] + 1, now_ms))
    return max(least, now_ms)


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


def _anomalous(
    row: dict[str, Any], pictures: Pictures | None, key_by: str, erasures: Sequence[Event]
) -> dict[str, Any]:
    event_ms, scored_ms = (
        round(row[f"{name}_time"].timestamp() * 1000) for name in ("event", "scored")
    )
    picture, why = "", "No store of images was named."
    if pictures is not None:
        try:
            picture = pictures(row["sha256"] or "", scored_ms)
        except NapStreamError as error:
            why = f"No picture: {error.problem}."
    for event in () if picture else erasures:
        names = event.data.get("sha256")
        if isinstance(names, list) and row["sha256"] in names:
            why = f"It was erased {rfc3339(event.time_ms)[:10]} by {event.by}."
    header = key_by.partition(":")[2]
    values = [each["value"] for each in row["headers"] if each["name"] == header]
    key = key_text([None, *values][-1] if header else row["key"])
    return {**row, "key": key, "event_ms": event_ms, "picture": picture, "no_picture": why}
