"""What the events of a log tell: runs, alerts and what was done about them, changed settings.

Their data come from outside: what is missing or of another kind is left out.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from nap_stream.alert.event import GAP_TYPE
from nap_stream.alert.unscored import UNSCORED_PREFIX
from nap_stream.scored_log.events import Event, EventKind, alert_id
from nap_stream.scored_log.history import differences
from nap_stream.settings.drift import DriftSettings

Span = tuple[int, int]
"""From and to, milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Run:
    """A monitor at work: what it said when it began, and when it ended, null where it said nothing.

    ``next_ms`` is when the same monitor was started again, null where it was not.
    """

    started: Event
    stopped: Event | None
    next_ms: int | None

    @property
    def start_ms(self) -> int:
        """When it began."""
        return self.started.time_ms

    @property
    def end_ms(self) -> int | None:
        """When it ended at the latest; null where nothing tells."""
        return self.stopped.time_ms if self.stopped else self.next_ms

    @property
    def bound(self) -> float | None:
        """The OOD fraction at which its window fires."""
        bound = self.started.data.get("bound")
        return float(bound) if isinstance(bound, int | float) and 0 < bound <= 1 else None

    @property
    def drift(self) -> Mapping[str, Any]:
        """The settings of its drift monitor."""
        return _tree(_tree(self.started.data.get("settings")).get("drift"))

    @property
    def run_length(self) -> float | None:
        """Records a false alarm that it promised; None where blocks decide, or nothing tells."""
        names = ("false_alarms", "expected_run_length")
        if "blocks" in str(self.started.data.get("detectors")) or not set(names) <= {*self.drift}:
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
    """

    last: Event | None
    count: int
    runs: tuple[Run, ...]
    episodes: tuple[Episode, ...]
    unplaced: tuple[Event, ...]
    changes: tuple[tuple[Run, str, str, str], ...]

    def bounds(self, topic: str) -> list[tuple[int, float]]:
        """From when on which OOD fraction fired, by the runs of a topic."""
        own = (run for run in self.runs if run.started.topic == topic)
        return [(run.start_ms, run.bound) for run in own if run.bound is not None]

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
        )


def history(events: Iterable[Event], topic: str | None = None) -> History:
    """Tell what happened to a topic, or to all; ``events`` are in order."""
    count, last, own = 0, None, defaultdict[str, list[Event]](list)
    for event in events:
        count, last = count + 1, event
        if topic is None or event.topic in {topic, ""}:
            own[event.kind].append(event)
    acknowledged, accepted = own[EventKind.ACKNOWLEDGED], own[EventKind.ACCEPTED]
    episodes = sorted(
        _episodes(own[EventKind.ALERT], acknowledged, accepted), key=lambda each: each.start_ms
    )
    known = {id_ for each in episodes for id_ in each.ids}
    runs = tuple(_runs(own[EventKind.RUN_STARTED], own[EventKind.RUN_STOPPED]))
    unplaced = tuple(event for event in acknowledged if alert_id(event) not in known)
    return History(last, count, runs, tuple(episodes), unplaced, tuple(_changes(runs)))


def _changes(runs: Iterable[Run]) -> Iterator[tuple[Run, str, str, str]]:
    before: dict[tuple[str, str], Event] = {}
    for run in runs:
        event, who = run.started, (run.started.topic, run.started.monitor)
        for item in differences(before.get(who, event).data, event.data):
            yield run, *item
        before[who] = event


def _runs(started: Sequence[Event], stopped: Iterable[Event]) -> Iterator[Run]:
    ends = {event.by: event for event in stopped}
    for place, event in enumerate(started):
        who = (event.topic, event.monitor)
        later = (e.time_ms for e in started[place + 1 :] if (e.topic, e.monitor) == who)
        yield Run(event, ends.get(event.by), next(later, None))


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
    alerts: Iterable[Event], acknowledged: Sequence[Event], accepted: Sequence[Event]
) -> Iterator[Episode]:
    of_whom = defaultdict[_Who, dict[str, _Sent]](dict)
    for event in alerts:
        sent = _sent(event)
        of_whom[sent.who].setdefault(sent.id, sent)
    for who, found in of_whom.items():
        episode: list[_Sent] = []
        for sent in found.values():
            episode.append(sent)
            if not sent.is_firing:
                yield _episode(who, episode, acknowledged, accepted)
                episode = []
        if episode:
            yield _episode(who, episode, acknowledged, accepted)


def _episode(
    who: _Who,
    sent: Sequence[_Sent],
    acknowledged: Sequence[Event],
    accepted: Sequence[Event],
) -> Episode:
    ids = tuple(each.id for each in sent)
    start_ms, end_ms = sent[0].time_ms, None if sent[-1].is_firing else sent[-1].time_ms
    telling = next((each for each in reversed(sent) if each.is_firing), sent[-1])
    answers = [event for event in acknowledged if alert_id(event) in ids]
    for event in accepted:
        from_ms = event.data.get("from_ms")
        is_before = isinstance(from_ms, int) and end_ms is not None and end_ms < from_ms
        of_key = (event.topic, "drift", str(event.data.get("key", "")))
        if of_key == (who[0], *who[2:]) and event.time_ms >= start_ms and not is_before:
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
    except ValueError:
        time = event.time_ms / 1000
    return _Sent(
        (event.topic, event.monitor, about, key),
        alert_id(event),
        round(1000 * time),
        data.get("state") == "firing",
        str(data.get("severity") or ""),
        words,
    )


def without_monitor(
    runs: Iterable[Run], scored_ms: Iterable[int], width_ms: int, period: Span
) -> list[Span]:
    """The stretches of a period in which no run was at work.

    A run that tells of no end was at work until the last row that was scored before the next one
    began, as far as is known: ``scored_ms`` are starts of stretches of ``width_ms`` in which rows
    were scored.
    """
    times, spans = sorted(scored_ms), []
    for run in runs:
        limit = run.next_ms or period[1]
        last = bisect_right(times, limit) - 1
        seen_ms = min(limit, times[last] + width_ms) if last >= 0 else 0
        spans.append((run.start_ms, run.stopped.time_ms if run.stopped else seen_ms))
    return outside(spans, period)


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
