"""What the events of a log tell: runs, alerts and what was done about them, changed settings.

Their data come from outside: what is missing or of another kind is left out.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from nap_stream.alert.event import GAP_TYPE
from nap_stream.alert.unscored import UNSCORED_PREFIX
from nap_stream.core.alert_state import Detector
from nap_stream.scored_log.events import Event, EventKind, alert_id
from nap_stream.scored_log.history import differences
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.topics import LONGEST_PATTERN
from nap_stream.text import LATEST_MS, printable

Span = tuple[int, int]
"""From and to, milliseconds since the epoch."""
RunKey = tuple[str, str, int]
"""A run's topic, by whom it is, and when it began."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class Run:
    """A monitor at work: what it said when it began, and when it ended, null where it said nothing.

    ``next_ms`` is when the same monitor was started again, ``followed_ms`` when any monitor of the
    topic was: null where none was. Of the rows that were scored before that, ``seen_ms`` is when
    the last one was, null where there is none, and ``judged`` counts those of a period that have
    scores. ``topics`` are those of the log that it says it reads.
    """

    started: Event
    stopped: Event | None
    next_ms: int | None
    followed_ms: int | None = None
    seen_ms: int | None = None
    judged: int = 0
    topics: frozenset[str] = frozenset()

    @property
    def start_ms(self) -> int:
        """When it began."""
        return self.started.time_ms

    @property
    def end_ms(self) -> int | None:
        """When it ended at the latest; null where nothing tells."""
        return self.stopped.time_ms if self.stopped else self.next_ms

    @property
    def version(self) -> str:
        """Of nap-stream."""
        return _text(self.started.data.get("version"))

    @property
    def reason(self) -> str:
        """Why it ended, as far as anything tells."""
        if self.stopped is not None:
            return _text(self.stopped.data.get("reason"))
        return "it was killed" if self.next_ms else "it runs, or was killed"

    @property
    def detectors(self) -> Sequence[str]:
        """Which of them decide."""
        found = self.started.data.get("detectors")
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    @property
    def bound(self) -> float | None:
        """The OOD fraction at which its window fires; None where no window decides."""
        bound = self.started.data.get("bound")
        if Detector.OOD_WINDOW not in self.detectors:
            return None
        return float(bound) if isinstance(bound, int | float) and 0 < bound <= 1 else None

    @property
    def drift(self) -> Mapping[str, Any]:
        """The settings of its drift monitor."""
        return _tree(_tree(self.started.data.get("settings")).get("drift"))

    @property
    def run_length(self) -> float | None:
        """Records a false alarm that it promised; None where blocks decide, or nothing tells."""
        names = ("false_alarms", "expected_run_length")
        if Detector.BLOCKS in self.detectors or not set(names) <= {*self.drift}:
            return None
        try:
            return DriftSettings(**{name: self.drift[name] for name in names}).run_length
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Episode:
    """An alert from its beginning to its end, in event time; ``end_ms`` is null while it fires.

    ``about`` is drift, unscored or gap. ``ids`` are of the events that told of it, ``answers``
    those in which somebody acknowledged or accepted it.
    """

    topic: str
    monitor: str
    about: str
    key: str
    severity: str
    start_ms: int
    end_ms: int | None
    words: str
    ids: tuple[str, ...]
    answers: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class History:
    """All that the events tell. ``last`` is the newest one, null of a log without events.

    ``unplaced`` are acknowledgements of alerts that no event tells of. ``changes`` are what each
    run has other than the same monitor's run before it: its name, and the value before and after.
    ``erasures`` tell which kept images were erased, whatever their topic.
    """

    last: Event | None
    count: int
    runs: tuple[Run, ...]
    episodes: tuple[Episode, ...]
    unplaced: tuple[Event, ...]
    changes: tuple[tuple[Run, str, str, str], ...]
    erasures: tuple[Event, ...]

    def bounds(self, topic: str) -> list[tuple[Span, float]]:
        """Which OOD fraction fired when, by the runs of a topic."""
        own = [run for run in self.runs if run.started.topic == topic]
        found = []
        for run in own:
            ends = (run.stopped.time_ms if run.stopped else LATEST_MS, run.followed_ms or LATEST_MS)
            if run.bound is not None:
                found.append(((run.start_ms, min(ends)), run.bound))
        return found

    @property
    def key_by(self) -> str:
        """What the newest run that says so tells keys apart by; "key" where none does."""
        keys = (_tree(run.drift.get("keys")).get("by") for run in reversed(self.runs))
        return next((by for by in keys if isinstance(by, str)), "key")

    def within(self, since_ms: int, until_ms: int) -> "History":
        """What the period ``[since_ms, until_ms)`` has a part of."""

        def has_part(each: Run | Episode) -> bool:
            return each.start_ms < until_ms and (each.end_ms is None or each.end_ms >= since_ms)

        return replace(
            self,
            runs=tuple(filter(has_part, self.runs)),
            episodes=tuple(filter(has_part, self.episodes)),
            changes=tuple(c for c in self.changes if since_ms <= c[0].start_ms < until_ms),
            erasures=tuple(e for e in self.erasures if e.time_ms >= since_ms),
        )


def topics_read(
    events: Iterable[Event], topics: Collection[str]
) -> Mapping[RunKey, frozenset[str]]:
    """Which of the log's topics each run says it reads."""
    found = defaultdict[RunKey, frozenset[str]](frozenset)
    by_pattern = defaultdict[str, list[RunKey]](list)
    for event in events:
        if event.kind != EventKind.RUN_STARTED:
            continue
        kafka = _tree(_tree(event.data.get("settings")).get("kafka"))
        names, pattern = kafka.get("topics"), kafka.get("topic_pattern")
        if isinstance(pattern, str) and len(pattern) <= LONGEST_PATTERN:
            by_pattern[pattern].append(run_key(event))
            continue
        named = map(str, names) if isinstance(names, list) and names else (event.topic,)
        found[run_key(event)] |= frozenset(topics).intersection(named)
    for pattern, own in _fitting(by_pattern, topics):
        for run in by_pattern[pattern]:
            found[run] |= own
    return found


def streams_of(
    read: Mapping[RunKey, frozenset[str]], topics: Collection[str]
) -> Mapping[str, frozenset[str]]:
    """Which of the log's topics are a monitor's one stream, by its name; of any of its runs.

    ``read`` is as `topics_read` gives it. A topic that no run says it reads is a stream of its own.
    """
    found = defaultdict[str, frozenset[str]](frozenset)
    for (name, _, _), own in read.items():
        found[name] |= own
    alone = frozenset(topics).difference(*found.values())
    return {name: own for name, own in found.items() if own} | {
        topic: frozenset({topic}) for topic in alone
    }


def _fitting(
    patterns: Collection[str], topics: Collection[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """The topics that fit each of some patterns, which others can have written.

    RE2 matches in time that is linear in the name; Python's own takes for ever where that is meant.
    """
    if not patterns:
        return
    # Here: most logs were read without a pattern.
    import duckdb  # noqa: PLC0415

    own = [topic for topic in topics if not topic.startswith("__")]
    sql = "SELECT name FROM unnest($1::VARCHAR[]) AS t(name) WHERE regexp_full_match(name, $2)"
    with duckdb.connect() as connection:
        for pattern in patterns:
            try:
                found = connection.execute(sql, [own, pattern]).fetchall()
            except duckdb.Error as error:
                cause = f"{error}: the topics that it is for count as streams of their own"
                structlog.get_logger().warning(
                    "topic_pattern_not_read", pattern=printable(pattern), cause=printable(cause)
                )
            else:
                yield pattern, frozenset(name for (name,) in found)


def run_key(started: Event) -> RunKey:
    """What a run is told by."""
    return started.topic, started.by, started.time_ms


def history(
    events: Iterable[Event],
    streams: Collection[str] | None = None,
    read: Mapping[RunKey, frozenset[str]] | None = None,
) -> History:
    """Tell what happened to streams, by their names, or to all; ``events`` are in order.

    ``read`` is as `topics_read` gives it.
    """
    count, last, own = 0, None, defaultdict[str, list[Event]](list)
    for event in events:
        count, last = count + 1, event
        if streams is None or event.topic in {*streams, ""}:
            own[event.kind].append(event)
    acknowledged, accepted = own[EventKind.ACKNOWLEDGED], own[EventKind.ACCEPTED]
    episodes = sorted(
        _episodes(own[EventKind.ALERT], acknowledged, accepted), key=lambda each: each.start_ms
    )
    known = {id_ for each in episodes for id_ in each.ids}
    runs = tuple(_runs(own[EventKind.RUN_STARTED], own[EventKind.RUN_STOPPED], read or {}))
    unplaced = tuple(event for event in acknowledged if alert_id(event) not in known)
    return History(
        last,
        count,
        runs,
        tuple(episodes),
        unplaced,
        tuple(_changes(runs)),
        tuple(own[EventKind.ERASED]),
    )


def _changes(runs: Iterable[Run]) -> Iterator[tuple[Run, str, str, str]]:
    before: dict[tuple[str, str], Event] = {}
    for run in runs:
        event, who = run.started, (run.started.topic, run.started.monitor)
        for item in differences(before.get(who, event).data, event.data):
            yield run, *item
        before[who] = event


def _runs(
    started: Sequence[Event],
    stopped: Iterable[Event],
    read: Mapping[RunKey, frozenset[str]],
) -> list[Run]:
    ends = {event.by: event for event in stopped}
    own: dict[tuple[str, str], int] = {}
    any_of: dict[str, int] = {}
    found = []
    for event in reversed(started):
        who = (event.topic, event.monitor)
        topics = read.get(run_key(event), frozenset())
        later = own.get(who), any_of.get(event.topic)
        found.append(Run(event, ends.get(event.by), *later, topics=topics))
        own[who] = any_of[event.topic] = event.time_ms
    return found[::-1]


_Key = tuple[str, str]
"""Topic and key."""
_Who = tuple[str, str, str, str]
"""Topic, monitor, what it is about, and key."""


class _Sent(NamedTuple):
    """An alert as it was sent: what of it, and of whom it is."""

    who: _Who
    id: str
    time_ms: int
    is_firing: bool
    severity: str
    words: str


def _episodes(
    alerts: Iterable[Event], acknowledged: Iterable[Event], accepted: Iterable[Event]
) -> Iterator[Episode]:
    of_whom = defaultdict[_Who, dict[str, _Sent]](dict)
    for event in alerts:
        sent = _sent(event)
        of_whom[sent.who].setdefault(sent.id, sent)
    by_id, by_key = defaultdict[str, list[Event]](list), defaultdict[_Key, list[Event]](list)
    for event in acknowledged:
        by_id[alert_id(event)].append(event)
    for event in accepted:
        by_key[event.topic, str(event.data.get("key", ""))].append(event)
    for who, found in of_whom.items():
        own = by_key[who[0], who[3]] if who[2] == "drift" else []
        episode: list[_Sent] = []
        for sent in found.values():
            episode.append(sent)
            if not sent.is_firing:
                yield _episode(who, episode, by_id, own)
                episode = []
        if episode:
            yield _episode(who, episode, by_id, own)


def _episode(
    who: _Who,
    sent: Sequence[_Sent],
    acknowledged: Mapping[str, Sequence[Event]],
    accepted: Iterable[Event],
) -> Episode:
    ids = tuple(each.id for each in sent)
    start_ms, end_ms = sent[0].time_ms, None if sent[-1].is_firing else sent[-1].time_ms
    telling = next((each for each in reversed(sent) if each.is_firing), sent[-1])
    answers = [event for id_ in ids for event in acknowledged.get(id_, ())]
    for event in accepted:
        from_ms = event.data.get("from_ms")
        is_before = isinstance(from_ms, int) and end_ms is not None and end_ms < from_ms
        if event.time_ms >= start_ms and not is_before:
            answers.append(event)
    severity, words = telling.severity, telling.words
    return Episode(*who, severity, start_ms, end_ms, words, ids, tuple(answers))


def _sent(event: Event) -> _Sent:
    tree = _tree(event.data.get("event"))
    kind, data = str(tree.get("type", "")), _tree(tree.get("data"))
    about = "unscored" if kind.startswith(UNSCORED_PREFIX) else "drift"
    words = str(data.get("summary", ""))
    if kind == GAP_TYPE:
        about, words = "gap", f"{data.get('offsets')} offsets are missing: {data.get('reason')}"
    key = f"partition {data.get('partition')}" if about == "gap" else str(data.get("key") or "")
    try:
        time = datetime.fromisoformat(str(tree.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        time = event.time_ms / 1000
    return _Sent(
        (event.topic, event.monitor, about, key),
        alert_id(event),
        round(1000 * time),
        data.get("state") == "firing",
        str(data.get("severity") or ""),
        words,
    )


def without_monitor(runs: Iterable[Run], period: Span) -> tuple[list[Span], list[Span]]:
    """The stretches of a period in which no run was at work, and those of which nothing tells.

    A run that tells of no end was at work until the last row that was scored before the next one
    began. Where none began, it may still be at work after that row, or be dead.
    """
    known, perhaps = [], []
    for run in runs:
        seen_ms = run.stopped.time_ms if run.stopped else run.seen_ms or run.start_ms
        known.append((run.start_ms, seen_ms))
        if run.end_ms is None:
            perhaps.append((run.start_ms, period[1]))
    off = outside([*known, *perhaps], period)
    return off, outside([*known, *off], period)


def outside(spans: Iterable[Span], period: Span) -> list[Span]:
    """What of a period no span covers, in order."""
    found, (position, until_ms) = [], period
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if min(start, until_ms) > position:
            found.append((position, min(start, until_ms)))
        position = max(position, end)
    return found if position >= until_ms else [*found, (position, until_ms)]


def _tree(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else NOT_RECORDED
