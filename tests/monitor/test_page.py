"""The page at /: what it says, that it is escaped and bounded, and what it looks like."""

import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from nap_stream.alert.event import AlertEvent
from nap_stream.clock import ManualClock
from nap_stream.core.alert_state import Detector, Firing, Severity
from nap_stream.drift.records import FiringKey
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import RECENT, Journal
from nap_stream.monitor.page import MOST, MOST_POINTS, LivePage
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.records import PartitionProgress, Status
from tests.monitor.test_coordinator import BACK, CALM, DRIFT, NOW_MS, running
from tests.report.browser import screenshot
from tests.report.test_page import HOSTILE, WORDS
from tests.support.memory_store import MemoryStore
from tests.support.summaries import Row, partition, report, segments, settings, summary
from tests.support.waiting import PATIENCE_S

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer"),
    *("p", "b", "h1", "h2", "h3", "dl", "div", "dt", "dd", "ul", "li", "article", "code", "a"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "line"),
}
KEYS = {"by": "key", "max_firing": 20}


def page_of(coordinator: Coordinator) -> tuple[dict[str, str], str]:
    url = coordinator.metrics_url.removesuffix("metrics")
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        return dict(answer.headers), answer.read().decode()


def live(sections: dict[str, Any] | None = None) -> LivePage:
    chosen = settings(**(sections or {}))
    return LivePage(chosen, CollectorRegistry(), Journal(MemoryStore(), chosen, ManualClock(0)))


def status() -> CoordinatorStatus:
    with running() as coordinator:
        return coordinator.status()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]))


@pytest.fixture(scope="module")
def drifting() -> str:
    """The page of a run with a drift, a gap, a worker that waits, and a partition nobody reads."""
    clock = ManualClock(NOW_MS)
    with running(clock=clock, drift={"keys": KEYS}) as coordinator:
        for each in segments(0, [*CALM, *DRIFT], [25] * 16):
            coordinator.submit(each)
            clock.advance(1.5)
            coordinator.tick()
        coordinator.submit(summary(1, 0, [], end=7, gap="retention deleted them"))
        rows = [Row(400 + n, flagged=False, status=Status.CORRUPT) for n in range(3)]
        coordinator.submit(summary(2, 0, rows))
        ours = PartitionProgress(partition(0), 400, 1_234, 5_000)
        waits = "the log: the disk is full"
        coordinator.report(report(partitions=(ours,), sent_at_ms=clock.now_ms(), waiting_for=waits))
        coordinator.tick()
        return page_of(coordinator)[1]


def test_it_says_how_the_run_is(drifting: str) -> None:
    said = text_of(drifting)
    for words in (
        "Has the stream drifted? Drift, critical",
        "20 of the last 40 images are flagged",
        "No worker-0 waits for the log: the disk is full",
        "7 offsets that the log or the monitor had to do without",
        "without scores, by reason: corrupt 3",
        "Drift, firing, critical",
        "offsets 0 to 7 of partition 1 are not in the log",
        "images/0 worker-0 400 1,234 5 s",
        "images/2 none reports it ? ? ?",
        "0 are known, the detector of 0 is active",
    ):
        assert words in said, words
    for detector in (Detector.OOD_WINDOW, Detector.OOD_SEQUENTIAL, Detector.UNSCORED_IMAGES):
        assert f"{detector.value} " in said
    assert drifting.count('<path class="line" d="M') == 1
    assert 'class="bound" d="M' in drifting


def test_it_allows_nothing_and_is_read_anew() -> None:
    with running() as coordinator:
        headers, page = page_of(coordinator)
    allowed = headers["Content-Security-Policy"]
    assert allowed.startswith("default-src 'none'; style-src 'sha256-")
    assert allowed.endswith("frame-ancestors 'none'")
    assert "script" not in allowed
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert '<meta http-equiv="refresh" content="10">' in page
    assert not re.search(r"<(script|form|input|button|iframe|img|link)\b|https?://| on\w+=", page)
    said = text_of(page)
    assert "Not known yet" in said
    assert "waiting for 1 of 1 workers to load the model" in said


def test_settings_can_do_without() -> None:
    with running(metrics={"port": 0, "page": False}) as coordinator:
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            page_of(coordinator)
        assert '{"paths": ["/metrics", "/healthz"' in caught.value.read().decode()
        caught.value.close()


@pytest.mark.parametrize("hostile", [*HOSTILE, WORDS])
def test_what_comes_from_outside_is_escaped(hostile: str) -> None:
    chosen = settings(alerts={"monitor": "m"}, drift={"keys": KEYS})
    journal = Journal(MemoryStore(), chosen, ManualClock(0))
    event = {
        "id": hostile,
        "type": hostile,
        "time": hostile,
        "data": {"summary": hostile, "severity": hostile, "key": hostile},
    }
    journal.tell([AlertEvent("m", event), AlertEvent("m", {"id": "2", "type": [], "data": "x"})])
    firing = FiringKey(hostile, Firing(0, 0, 0, (), Severity.WARNING), 0)
    before = status()
    workers = {hostile: report(hostile, waiting_for=hostile)}
    now = replace(
        before,
        drift=replace(before.drift, firing_keys=(firing,), keys_firing=1),
        workers=workers,
        waiting_for={hostile: hostile},
        events_lost=hostile,
    )
    page = LivePage(chosen, CollectorRegistry(), journal).write(now, [hostile])
    for bad in ("<script>alert", "<img src", "\x1b", "\x00", "\u202e", "1337", "</style></title>"):
        assert bad not in page.replace("</style>\n", "")
    assert set(re.findall(r"<(\w+)", page)) <= TAGS


def test_thousands_of_keys_partitions_and_workers_are_a_page_of_the_same_size() -> None:
    before = status()
    firing = tuple(
        FiringKey(f"camera-{n}" * 20, Firing(n, n, n, (), Severity.WARNING), n)
        for n in range(1_000)
    )
    places = tuple(PartitionProgress(partition(n), n, n, n) for n in range(5_000))
    workers = {f"w{n}": report(f"w{n}", waiting_for="the log") for n in range(2_000)}
    workers["w0"] = replace(workers["w0"], partitions=places)
    waits = dict.fromkeys(workers, "the log")
    now = replace(
        before,
        drift=replace(before.drift, firing_keys=firing, keys_firing=1_000, keys=90_000),
        workers=workers,
        waiting_for=waits,
    )
    page = live({"drift": {"keys": KEYS}}).write(now, [f"{name} waits" for name in workers])
    assert len(page) < 300_000
    assert page.count('<tr><th scope="row">') <= 3 * (MOST + 1)
    said = text_of(page)
    assert "images/4999 w0 4,999 4,999 4 s" in said, "the furthest behind is shown"
    assert "The first 100 of 5,000." in said
    assert "and 1,992 more" in said


def test_what_it_remembers_is_bounded_and_spans_the_run() -> None:
    page, drift = live(), replace(status().drift, window_records=40, firing_limit=4)
    for second in range(100_000):
        page.note(second * 1_000, drift)
    page.note(5_000, drift)
    assert len(page._points) <= MOST_POINTS + 1
    assert page._points[0].time_ms == 0
    assert page._points[-1].time_ms == 5_000, "a clock that is set back stops nothing"
    written = page.write(replace(status(), now_ms=99_999_000), [])
    assert "NaN" not in written
    assert 'class="line" d="M' in written


def test_alerts_of_before_are_told_and_those_of_others_are_not() -> None:
    store = MemoryStore()
    with running(store=store) as coordinator:
        for each in segments(0, [*CALM, *DRIFT, *BACK], [25] * 24):
            coordinator.submit(each)
        coordinator.flush(5)
    other = settings(alerts={"monitor": "another"})
    theirs = Journal(store, other, ManualClock(NOW_MS))
    theirs.tell([AlertEvent("m", {"id": "7", "type": "io.nap-stream.of-another"})])
    theirs.write()
    with running(store=store) as coordinator:
        said = text_of(page_of(coordinator)[1])
    newest_first = said.index("Drift, resolved"), said.index("Drift, firing")
    assert newest_first[0] < newest_first[1]
    assert "of-another" not in said


def test_no_more_alerts_are_kept_than_shown() -> None:
    journal = Journal(MemoryStore(), settings(), ManualClock(0))
    journal.tell([AlertEvent("m", {"id": str(n), "type": "t"}) for n in range(50)])
    newest = [str(n) for n in range(49, 49 - RECENT, -1)]
    assert [event["id"] for event in journal.recent()] == newest


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("narrow", 400, True)]
)
def test_what_it_looks_like(
    drifting: str, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page, picture = tmp_path / "page.html", tmp_path / f"{name}.png"
    page.write_text(drifting, encoding="utf-8")
    screenshot(page, picture, width=width, height=2_400, dark=dark)
    print(f"look at {picture}")  # noqa: T201  it is for people
    with Image.open(picture) as image:
        colours = image.convert("L").crop((0, 0, width, 2_000)).histogram()
    ground = max(range(256), key=colours.__getitem__)
    assert (ground < 60) is dark
    assert sum(colours) * 0.5 < colours[ground] < sum(colours) * 0.99
