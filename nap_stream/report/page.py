"""The page of a report: figures put into HTML.

The template escapes every value; `_shown` writes out what is not printable before that, so that no
name can end a line or turn the direction of what follows it.
"""

import base64
import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nap_stream.report.charts import Axis, Chart, coarser, ood_chart
from nap_stream.report.counts import MAX_KEYS, Count, chart_width_ms, quantile
from nap_stream.report.gather import Figures
from nap_stream.report.history import Span, outside, without_monitor
from nap_stream.report.words import ABOUT, answers, comment, interval, lasting, many, promise, when
from nap_stream.text import bounded, duration, number, percent, printable

MOST = 200
"""Rows of one table."""
MOST_CHARTS = 8
_DIFFERENCES = 15
_FILTERS = {
    "n": number,
    "pct": percent,
    "when": when,
    "lasting": lasting,
    "short": bounded,
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
    folder = Path(__file__).parent
    style = Markup((folder / "page.css").read_text(encoding="utf-8"))  # noqa: S704  our own file
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    environment.filters |= _FILTERS
    page = environment.get_template("page.html.j2").render(
        **_values(figures),
        f=figures,
        style=style,
        style_hash=f"sha256-{digest}",
        version=version("nap-stream"),
        most=MOST,
        statuses=_STATUSES,
        max_keys=MAX_KEYS,
    )
    return "\n".join(line for line in page.splitlines() if line.strip()) + "\n"


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _values(f: Figures) -> dict[str, Any]:
    width_ms, fine_ms = chart_width_ms(f.until_ms - f.since_ms), f.tally.width_ms
    period, least_ms = (f.since_ms, f.until_ms), max(fine_ms, 60_000)
    axis, lanes = Axis(*period), []
    silent: list[tuple[str, Span]] = []
    off: list[tuple[str, Span]] = []
    for topic in f.topics:
        present = ((start, start + fine_ms) for name, start in f.tally.times if name == topic)
        empty = outside(present, period)
        scored_ms = (start for name, start in f.tally.scored_times if name == topic)
        runs = [run for run in f.history.runs if run.started.topic == topic]
        idle = without_monitor(runs, scored_ms, fine_ms, period)
        silent += [(topic, span) for span in empty if span[1] - span[0] >= least_ms]
        off += [(topic, span) for span in idle]
        lanes.append((topic, *([axis.bar(s) for s in outside(e, period)] for e in (empty, idle))))
    seen = sorted({topic for topic, _ in f.tally.times})
    return {
        "axis": axis,
        "width": duration(width_ms),
        "least": duration(least_ms),
        "silent": silent,
        "off": off,
        "lanes": lanes[:MOST_CHARTS],
        "charts": [_chart(f, topic, width_ms, axis) for topic in seen[:MOST_CHARTS]],
        "answers": answers(f, silent, off, duration(least_ms)),
        "promise": [sentence for topic in f.topics for sentence in promise(f, topic)],
        "keys": _by_low_end(f.tally.keys or {}),
        "classes": _by_low_end(f.tally.classes),
        "comparison": _comparison(f),
    }


def _chart(f: Figures, topic: str, width_ms: int, axis: Axis) -> tuple[Chart, dict[int, Count]]:
    points = coarser(f.tally.times, width_ms, topic)
    bounds = f.history.bounds(topic)
    if not bounds and f.asked.stated is not None:
        bounds = [(f.since_ms, f.asked.stated.bound)]
    alerts = [(place, e) for place, e in enumerate(f.history.episodes, 1) if e.topic == topic]
    return ood_chart(topic, points, width_ms, bounds=bounds, alerts=alerts, axis=axis), points


def _by_low_end(counts: Mapping[str, Count]) -> list[tuple[str, Count]]:
    """The surely high ones first, those without scores last."""
    return sorted(
        counts.items(), key=lambda each: (not each[1].scored, -each[1].interval[0], each[0])
    )


def _comparison(f: Figures) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Tables of a comparison: their captions, and rows of name, both shares, and difference."""
    if f.comparison is None:
        return []
    first, second = f.comparison.first, f.comparison.second
    slow = [quantile(tally.delays, 0.99) for tally in (first, second)]
    unscored = [Count(t.all.rows, t.all.rows, t.all.rows - t.all.scored) for t in (first, second)]
    whole = [
        ("Images", number(first.all.rows), number(second.all.rows), "", ""),
        ("Flagged, of scored images", *_difference(first.all, second.all)),
        ("Without scores, of all", *_difference(*unscored)),
        ("Reading to score, p99", *("none" if s is None else lasting(s) for s in slow), "", ""),
    ]
    keys = _differences(first.keys or {}, second.keys or {})
    classes = _differences(first.classes, second.classes)
    by_key, by_class = f"Flagged by {f.key_by}", "Flagged by predicted class"
    return [("In all", whole), (by_key, keys), (by_class, classes)]


def _differences(first: Mapping[str, Count], second: Mapping[str, Count]) -> list[tuple[str, ...]]:
    """The largest differences of what has scores in both."""
    names = [n for n in first.keys() & second.keys() if first[n].scored and second[n].scored]
    names.sort(key=lambda name: (-abs(second[name].share - first[name].share), name))
    return [(name, *_difference(first[name], second[name])) for name in names[:_DIFFERENCES]]


def _difference(a: Count, b: Count) -> tuple[str, ...]:
    """Both shares, their difference, and Newcombe's interval of 95 % for it."""
    if not a.scored or not b.scored:
        return *(percent(c.share) if c.scored else "none" for c in (a, b)), "", ""
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    change = b.share - a.share
    low = change - math.hypot(b.share - low_b, high_a - a.share)
    high = change + math.hypot(high_b - b.share, a.share - low_a)
    ends = f"{100 * low:+.3g} to {100 * high:+.3g}"
    return percent(a.share), percent(b.share), f"{100 * change:+.3g} points", ends
