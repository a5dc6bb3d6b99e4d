"""The page of a report: figures put into HTML."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_stream.core.hidden_keys import told_apart
from nap_stream.core.panes import NO_KEY
from nap_stream.pages.axis import Axis
from nap_stream.pages.html import write_page
from nap_stream.report.charts import Chart, coarser, ood_chart
from nap_stream.report.comparison import months_of, tables_of, unit_of
from nap_stream.report.counts import MAX_KEYS, Count, chart_width_ms, quantile
from nap_stream.report.gather import Figures
from nap_stream.report.history import Episode, Span, outside, without_monitor
from nap_stream.report.words import (
    ABOUT,
    Coverage,
    Named,
    answers,
    comment,
    interval,
    lasting,
    many,
    promise,
    when,
)
from nap_stream.text import duration

MOST = 200
"""Rows of one table."""
MOST_CHARTS = 8
MOST_ANSWERS = 20
"""To one alert."""
_STOPPED_AFTER = 10
"""A key has stopped that is silent for so many of its intervals between images."""
_FILTERS: Mapping[str, Callable[..., Any]] = {
    "when": when,
    "lasting": lasting,
    "interval": interval,
    "about": ABOUT.__getitem__,
    "quantile": quantile,
    "many": many,
    "comment": comment,
}
_STATUSES = {
    "ok": "scored",
    "tombstone": "a deletion marker, no image",
    "empty": "the message has no bytes",
    "too_large": "larger than the limits allow",
    "unsupported": "of no format that is read",
    "corrupt": "damaged: it cannot be decoded",
    "bad_batch": "in a batch that cannot be read",
    "not_finite": "the model gave no finite numbers",
    "bad_message": "in a message that cannot be read as configured",
    "not_allowed": "a reference to a place that is not allowed",
    "missing": "a reference to an image that is not there",
    "fetch_failed": "a reference that could not be fetched",
}


def render(figures: Figures) -> str:
    """Write figures as one page of HTML that needs nothing else."""
    more = {
        "f": figures,
        "most": MOST,
        "most_answers": MOST_ANSWERS,
        "statuses": _STATUSES,
        "max_keys": MAX_KEYS,
    }
    return write_page(
        Path(__file__).with_name("page.html.j2"), {**_values(figures), **more}, _FILTERS
    )


def _values(f: Figures) -> dict[str, Any]:
    width_ms, least_ms = chart_width_ms(f.until_ms - f.since_ms), max(f.tally.width_ms, 60_000)
    cover = _coverage(f, least_ms)
    axis = Axis(f.since_ms, f.until_ms)
    lanes = []
    for topic in f.topics[:MOST_CHARTS]:
        came = outside(_stretches(f.tally.times, topic, f.tally.width_ms), axis.period)
        idle = [span for name, span in (*cover.off, *cover.unsure) if name == topic]
        bars = ([axis.bar(s) for s in outside(e, axis.period)] for e in (came, idle))
        lanes.append((topic, *bars))
    seen = sorted({topic for topic, _ in f.tally.times})
    episodes = _episodes(f)
    streams = sorted(f.streams)[:MOST_CHARTS]
    promises = [sentence for stream in streams for sentence in promise(f, stream)]
    return {
        "axis": axis,
        "width": duration(width_ms),
        "cover": cover,
        "lanes": lanes,
        "charts": [_chart(f, topic, width_ms, axis, episodes) for topic in seen[:MOST_CHARTS]],
        "episodes": episodes,
        "answers": answers(f, cover),
        "promise": promises,
        "keys": _by_low_end(f.tally.keys or {}),
        "apart": told_apart(key.encode() for key in f.tally.keys or () if key != NO_KEY),
        "classes": _by_low_end(f.tally.classes),
        "comparison": tables_of(f),
        "unit": unit_of(f) if f.comparison else "",
        "months": months_of(f),
    }


def _stretches(
    counts: Mapping[tuple[str, int], Count], topic: str, width_ms: int
) -> Iterator[Span]:
    return ((start, start + width_ms) for name, start in counts if name == topic)


def _coverage(f: Figures, least_ms: int) -> Coverage:
    silent: list[Named] = []
    late: list[Named] = []
    off: list[Named] = []
    unsure: list[Named] = []
    period, width_ms = (f.since_ms, f.until_ms), f.tally.width_ms
    is_late = max(f.tally.lags, default=0) >= least_ms
    for topic in f.topics:
        empty = outside(_stretches(f.tally.times, topic, width_ms), period)
        scored = list(_stretches(f.tally.scored_times, topic, width_ms))
        behind = outside([*scored, *empty], period) if is_late else []
        idle, perhaps = without_monitor(
            (run for run in f.history.runs if run.started.topic in f.names_of(topic)), period
        )
        for found, spans, at_least in (
            (silent, empty, least_ms),
            (late, behind, least_ms),
            (off, idle, 0),
            (unsure, perhaps, 0),
        ):
            found += [(topic, span) for span in spans if span[1] - span[0] >= at_least]
    stopped = [
        (key, count)
        for key, count in (f.tally.keys or {}).items()
        if f.tally.all.last_ms - count.last_ms
        > max(least_ms, _STOPPED_AFTER * (count.last_ms - count.first_ms) / max(1, count.rows - 1))
    ]
    stopped.sort(key=lambda each: (each[1].last_ms, each[0]))
    return Coverage(duration(least_ms), silent, late, off, unsure, stopped)


def _episodes(f: Figures) -> list[tuple[int, Episode]]:
    """Alerts by their numbers in order of time: the open ones first, then the newest."""
    numbered = enumerate(f.history.episodes, 1)
    return sorted(numbered, key=lambda each: (each[1].end_ms is not None, -each[0]))


def _chart(
    f: Figures, topic: str, width_ms: int, axis: Axis, episodes: Sequence[tuple[int, Episode]]
) -> tuple[Chart, dict[int, Count]]:
    points = coarser(f.tally.times, width_ms, topic)
    names = f.names_of(topic)
    bounds = [bound for name in sorted(names) for bound in f.history.bounds(name)]
    if not bounds and f.asked.stated is not None:
        bounds = [(axis.period, f.asked.stated.bound)]
    alerts = sorted(
        ((number, each) for number, each in episodes[:MOST] if each.topic in names),
        key=lambda each: each[0],
    )
    return ood_chart(topic, points, width_ms, bounds=bounds, alerts=alerts, axis=axis), points


def _by_low_end(counts: Mapping[str, Count]) -> list[tuple[str, Count]]:
    """The surely high ones first, those without scores last."""
    return sorted(
        counts.items(), key=lambda each: (not each[1].scored, -each[1].interval[0], each[0])
    )
