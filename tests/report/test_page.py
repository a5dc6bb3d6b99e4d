"""The page of a report: what it says, that it is escaped, and what it looks like."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nap_stream.errors import InputDataError
from nap_stream.pages.axis import Axis
from nap_stream.records import TopicPartition
from nap_stream.report.charts import coarser, ood_chart
from nap_stream.report.counts import Count
from nap_stream.report.gather import Asked, Comparison, Figures, Stated, gather
from nap_stream.report.history import history
from nap_stream.report.page import render
from nap_stream.report.pictures import SIDE, kept_in
from nap_stream.report.words import promise
from nap_stream.scored_log.events import EventKind, append_event
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from tests.report.browser import browser, chromium, screenshot
from tests.report.month import (
    DAY_MS,
    END_MS,
    HOUR_MS,
    TOPIC,
    alert,
    at,
    run_started,
    write_events,
    write_rows,
)
from tests.support.memory_store import MemoryStore
from tests.support.summaries import settings

HOSTILE = (
    "<script>alert(1)</script>",
    "\"' onmouseover=alert(1) x='",
    "</style></title><img src=x onerror=alert(1)>",
    "{{ 7 * 191 }}{% raw %}",
    "bell\x07 esc\x1b[31m null\x00 line\nend",
    "\u202egnp.exe\u2066",
)
WORDS = " ".join(HOSTILE)
WHOLE = Asked(since_ms=at("01T00:00"), until_ms=END_MS)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    store = MemoryStore()
    write_rows(store)
    write_events(store)
    return store


@pytest.fixture(scope="module")
def month(store: MemoryStore) -> Figures:
    return gather(store, WHOLE, now_ms=END_MS + DAY_MS)


@pytest.fixture(scope="module")
def hostile() -> str:
    """A page whose every name comes from somebody who means harm."""
    store = MemoryStore()
    write_rows(store, days=3, names=HOSTILE)
    words: dict[str, Any] = {WORDS: WORDS}
    started = run_started("01T00:00", "coordinator", **words)
    data = {**started.data, "version": WORDS, "detectors": [WORDS]}
    found = alert("01T10:00", WORDS, "firing", WORDS, WORDS, key=WORDS)
    monitor = "<script>alert(1)</script>'\""
    events = [
        replace(started, data=data),
        found,
        replace(found, kind="acknowledged", by=monitor, data={"alert": WORDS, "comment": WORDS}),
        replace(found, kind="acknowledged", by=monitor, data={"alert": "?", "comment": WORDS}),
        replace(started, kind="run-stopped", data={"reason": WORDS}),
        run_started("02T00:00", "other", **{**words, WORDS: "!"}),
    ]
    for event in events:
        append_event(store, replace(event, monitor=monitor))
    period = Asked(since_ms=at("01T00:00"), until_ms=at("04T00:00"), compared=(None, None))
    period = replace(period, compared=(at("01T00:00"), at("02T00:00")))
    return render(gather(store, period, now_ms=END_MS))


class _Tags(HTMLParser):
    """All tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_are_text(hostile: str) -> None:
    page = _Tags(hostile)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert [tag for tag, _ in page.tags].count("style") == 1
    for name in HOSTILE[:4]:
        assert name in page.text
    assert r"bell\x07 esc\x1b[31m null\x00 line\nend" in page.text
    assert r"\u202egnp.exe\u2066" in page.text
    assert "1337" not in page.text
    assert not [c for c in hostile if not c.isprintable() and c != "\n"]
    # Nothing of what was written by somebody was left out in silence.
    for section in hostile.split("<h2 id=")[2:]:
        assert HOSTILE[3] in _Tags(section).text or section.startswith('"proof"'), section[:40]


def test_the_page_needs_nothing_else(hostile: str, month: Figures) -> None:
    for page in (hostile, render(month)):
        found = _Tags(page)
        policy = next(
            attributes["content"]
            for tag, attributes in found.tags
            if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
        )
        style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
            "form-action 'none'"
        )
        assert "url(" not in style[0]
        assert "@import" not in style[0]
        for _, attributes in found.tags:
            assert not {"srcset", "xlink:href", "action"} & attributes.keys()
            assert (attributes.get("href") or "#").startswith("#")
            assert (attributes.get("src") or "data:").startswith("data:")


def test_the_page_can_be_read_without_seeing(month: Figures) -> None:
    page = _Tags(render(month))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.tags:
        for name in ("href", "aria-labelledby"):
            named = (attributes.get(name) or "").removeprefix("#").split()
            assert set(named) <= set(ids)
        if tag == "svg" and "y" not in attributes:
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 8
    assert [tag for tag in tags if tag in {"h1", "h2", "h3"}][:2] == ["h1", "h2"]
    assert tags.count("h1") == 1


def _first_screen(page: str) -> str:
    answers = page[page.index('<dl class="answers">') : page.index("</dl>")]
    return re.sub(r"\s+", " ", _Tags(answers).text)


def test_the_first_screen_answers(month: Figures) -> None:
    text = _first_screen(render(month))
    for sentence in (
        "the longest from 2026-05-12 03:00 to 2026-05-12 09:00.",
        "always on?NoNo monitor is known to have run for 6 h 9 min in 2 stretches, the longest",
        "No image came for 6 h in 1 stretch of at least 1 h.",
        "The run that began 2026-05-16 12:00 has no recorded end: it runs, or was killed.",
        "61 segments, 8,568 rows. Footers were checked, values not.",
        "Is the log whole?Except for 40 offsets",
        "2 alerts of drift, 1 alert of images without scores, 1 alert of missing offsets",
        f"8,568 images in 1 topic, {month.tally.statuses['corrupt'].rows} of them without scores.",
        "1 alert without an end.2 alerts that nobody has answered.",
    ):
        assert sentence in text


def test_a_quiet_period_is_told_as_one(store: MemoryStore) -> None:
    period = Asked(since_ms=at("02T00:00"), until_ms=at("05T00:00"))
    text = _first_screen(render(gather(store, period, now_ms=END_MS)))
    assert "always on?YesBy their events, a monitor ran throughout the period." in text
    assert "There is no clock hour without an image." in text
    assert "What happened?No alert864 images" in text
    assert "What is open?NothingEach alert is over and answered." in text


def test_a_killed_run_hides_no_outage() -> None:
    """The run after it scored rows in the very hour in which it began."""
    store = MemoryStore()
    write_rows(store, days=13)
    for event in write_events(MemoryStore())[:4]:
        if event.kind != "run-stopped":
            append_event(store, event)
    period = Asked(since_ms=at("01T00:00"), until_ms=at("14T00:00"))
    figures = gather(store, period, now_ms=END_MS)
    first, second = figures.history.runs
    assert at("12T02:50") < (first.seen_ms or 0) < at("12T02:51")
    assert first.judged + second.judged == figures.tally.all.scored
    text = _first_screen(render(figures))
    assert "always on?NoNo monitor is known to have run for 6 h 9 min in 1 stretch" in text
    assert " to 2026-05-12 09:00." in text


def test_of_a_run_without_an_end_nothing_is_known_after_its_last_image() -> None:
    store = MemoryStore()
    write_rows(store, days=2)
    append_event(store, run_started("01T00:00", "coordinator-1"))
    text = _first_screen(
        render(gather(store, Asked(since_ms=at("01T00:00")), now_ms=at("03T00:05")))
    )
    assert "always on?Not known since 2026-05-02 23:50No row was scored after that" in text
    # An image of later is proof that it was at work.
    period = Asked(since_ms=at("01T00:00"), until_ms=at("02T00:00"))
    assert "always on?YesBy" in _first_screen(render(gather(store, period, now_ms=at("03T00:05"))))


def test_a_run_that_was_killed_after_the_period_was_at_work_in_all_of_it(
    store: MemoryStore,
) -> None:
    period = Asked(since_ms=at("13T00:00"), until_ms=at("14T00:00"))
    assert "always on?YesBy" in _first_screen(render(gather(store, period, now_ms=END_MS)))


def test_images_that_were_scored_late_are_told(store: MemoryStore) -> None:
    period = Asked(since_ms=at("02T00:00"), until_ms=at("05T00:00"))
    figures = gather(store, period, now_ms=END_MS)
    hours = (at("03T10:00"), at("03T15:00"))
    tally = figures.tally
    scored = {k: v for k, v in tally.scored_times.items() if not hours[0] <= k[1] < hours[1]}
    late = replace(tally, scored_times=scored, lags={**tally.lags, 5 * HOUR_MS: 40})
    text = _first_screen(render(replace(figures, tally=late)))
    assert "always on?It ran, and was late" in text
    assert "none was scored for 5 h in 1 stretch of at least 1 h; the longest lag is 5 h." in text
    keys = {**(tally.keys or {}), "gone": Count(20, 20, 0, at("02T00:00"), at("02T19:00"))}
    page = render(replace(figures, tally=replace(tally, keys=keys)))
    assert "1 key stopped sending before the others." in _first_screen(page)
    assert "Keys that stopped" in page
    keys["gone"] = Count(3, 3, 0, at("02T00:00"), at("02T19:00"))
    assert "Keys that stopped" not in render(replace(figures, tally=replace(tally, keys=keys)))


def test_a_period_is_what_the_page_says_it_is() -> None:
    """Of times that are wrong nothing is counted, and how many there are is said."""
    store = MemoryStore()
    write_rows(store, days=3)
    append_event(store, run_started("02T00:00", "coordinator-1"))
    now = at("02T12:00")
    figures = gather(store, Asked(since_ms=at("02T00:00")), now_ms=now)
    assert (figures.tally.all.rows, figures.outside) == (144, 720)
    assert "720 rows of the log lie outside of it." in render(figures)
    wrong = MemoryStore()
    write_rows(wrong, days=2, first_ms=7)
    figures = gather(wrong, Asked(), now_ms=END_MS)
    assert (figures.since_ms, figures.outside) == (at("01T00:10"), 2)
    figures = gather(store, Asked(until_ms=at("02T12:00")), now_ms=END_MS)
    assert figures.begins == "the image that was scored first"
    assert (figures.since_ms, figures.tally.all.rows) == (at("01T00:00"), 3 * 144)
    append_event(store, replace(run_started("01T00:00", "zero"), time_ms=at("01T00:00") - 5))
    figures = gather(store, Asked(), now_ms=now)
    assert figures.begins == "the first run"
    assert (figures.since_ms, figures.until_ms) == (at("01T00:00") - 5, now)
    assert "it begins with the first run." in render(figures)


def _two_hours(counts: dict[str, Count]) -> dict[tuple[str, int], Count]:
    """Half of each in one hour, the rest in the next."""
    halves = (
        (k, c, Count(*(n // 2 for n in (c.rows, c.scored, c.ood)))) for k, c in counts.items()
    )
    return {
        (key, hour * HOUR_MS): half
        if hour
        else Count(count.rows - half.rows, count.scored - half.scored, count.ood - half.ood)
        for key, count, half in halves
        for hour in (0, 1)
    }


def test_keys_that_are_stored_both_ways_are_said_to_be(month: Figures) -> None:
    assert "counted apart" not in render(month)
    keys = {**(month.tally.keys or {}), f"hmac-sha256:{'ab' * 32}": Count(1, 1)}
    both = replace(month, tally=replace(month.tally, keys=keys))
    assert "Some keys were stored in clear, and some as hashes" in render(both)


def test_a_comparison_leaves_nothing_out(month: Figures) -> None:
    keys = [{f"camera-{n}": Count(100, 100, n % 3) for n in range(40)} for _ in range(2)]
    keys[0] |= {"few": Count(2, 2, 0), "sure": Count(9_000, 9_000, 90), "old": Count(5, 5, 1)}
    keys[1] |= {"few": Count(2, 2, 1), "sure": Count(9_000, 9_000, 900), "new": Count(7, 7, 2)}
    tallies = [
        replace(month.tally, keys=each, key_units=_two_hours(each), unit_ms=HOUR_MS)
        for each in keys
    ]
    shared = (at("12T00:00"), at("13T00:00"))
    both = replace(
        month, comparison=Comparison(("Before", "After"), tallies[0], tallies[1], shared)
    )
    page = render(both)
    section = _Tags(page[page.index('<h2 id="compared"') :]).text
    table = section[section.index("Flagged by key") :]
    # Half of two is no sure difference, ten in a hundred of 9,000 is.
    assert table.index("sure") < table.index("camera-1") < table.index("camera-39")
    assert table.index("sure") < table.index("few")
    alone = table[table.index("with scores on one side at most") :]
    assert alone.index("old20 %no images") > 0
    assert alone.index("newno images28.6 %") > 0
    assert "Both periods share 2026-05-12 00:00 to 2026-05-13 00:00" in section
    many = replace(
        both, comparison=Comparison(("a", "b"), tallies[0], replace(tallies[1], keys=None))
    )
    assert "Flagged by key: more than 10,000 keys, not told apart" in render(many)


def test_the_page_is_bounded_and_shows_what_is_open(month: Figures) -> None:
    quiet = replace(month, history=replace(month.history, episodes=()))
    one = month.history.episodes[1]
    answer = one.answers[0]
    old = [
        replace(one, start_ms=at("02T00:00") + n, end_ms=at("02T01:00"), words="w" * 500_000)
        for n in range(1_000)
    ]
    still = replace(one, start_ms=at("01T01:00"), end_ms=None, answers=(answer,) * 5_000)
    newest = replace(one, start_ms=at("29T00:00"), end_ms=at("29T01:00"))
    many = replace(month.history, episodes=(still, *old, newest))
    page = render(replace(month, history=many))
    assert len(page) < len(render(quiet)) + 500_000
    assert page.index("<h3>1. Drift") < page.index("<h3>1002. Drift") < page.index("<h3>1001. ")
    assert "200 of 1,002: those without an end first, then the newest." in page
    assert "The first 20 of 5,000 answers." in page
    assert page.count('class="alert"') == 200
    assert "of the 200 that are listed" in page
    topics = tuple(f"topic-{n}" for n in range(300))
    page = render(replace(month, topics=topics))
    assert "Topics drawn: 8 of 300" in page
    assert len(page) < 2 * len(render(month))


def test_events_that_lack_what_they_should_have(month: Figures) -> None:
    runs = [
        replace(run, started=replace(run.started, data={}), stopped=replace(run.started, data={}))
        for run in month.history.runs
    ]
    erased = replace(runs[0].started, kind="erased")
    found = history([replace(erased, kind=kind) for kind in EventKind])
    page = render(
        replace(
            month,
            history=replace(found, runs=tuple(runs), episodes=found.episodes, erasures=(erased,)),
        )
    )
    assert page.count("<td>not recorded</td>") == 2 * len(runs)
    assert "Kept images that were erased" in page


def test_each_topic_has_its_own_coverage() -> None:
    store = MemoryStore()
    write_rows(store, days=3)
    write_rows(store, days=2, topic="cans")
    append_event(store, run_started("01T00:00", "coordinator-1"))
    period = Asked(since_ms=at("01T00:00"), until_ms=at("04T00:00"))
    page = render(gather(store, period, now_ms=END_MS))
    text = _first_screen(page)
    assert "No image came for 1 d in 1 stretch of at least 1 h." in text
    assert (
        "No monitor is known to have run for 3 d in 1 stretch, the longest from "
        "2026-05-01 00:00 to 2026-05-04 00:00." in text
    )
    assert page.count('<svg class="chart"') == 2


def test_a_log_without_events_says_what_it_does_not_know() -> None:
    store = MemoryStore()
    write_rows(store, days=2)
    page = render(gather(store, Asked(), now_ms=END_MS))
    text = _first_screen(page)
    assert text.count("Not recorded") == 3
    assert "No bound is drawn" in page
    stated = Stated(bound=0.0625, run_length=1e6)
    page = render(gather(store, Asked(stated=stated), now_ms=END_MS))
    assert "No bound is drawn" not in page


def test_a_report_that_was_not_verified_says_so(store: MemoryStore) -> None:
    figures = gather(store, replace(WHOLE, verified=False), now_ms=END_MS)
    page = render(figures)
    assert figures.verified is None
    assert "Not checked" in _first_screen(page)
    assert "The log was not verified for this report." in page


def test_damage_is_on_the_first_screen(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_rows(store, days=4)
    write_events(store)
    path = segment_path(TopicPartition(TOPIC, 0), 144)
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-50])
    (tmp_path / "_events/00000000000000000003.json").unlink()
    figures = gather(store, Asked(), now_ms=END_MS)
    page = render(figures)

    assert [line.partition(":")[0] for line in figures.unread] == [path]
    assert figures.tally.all.rows == 4 * 288 - 144
    text = _first_screen(page)
    assert "Is the log whole?No" in text
    assert "1 file could not be read." in text
    assert page.index(path) < page.index("<nav")
    assert "the events 3 to 3 are missing" in page


def test_a_period_without_rows(store: MemoryStore) -> None:
    period = Asked(since_ms=at("12T04:00"), until_ms=at("12T05:00"))
    page = render(gather(store, period, now_ms=END_MS))
    assert "Nothing was logged" in _first_screen(page)
    assert "The rows of the log lie from 2026-05-" in page
    assert "<figcaption><b>" not in page


def test_a_monitor_of_several_topics_has_one_promise_and_its_runs_are_those_of_each() -> None:
    store = MemoryStore()
    topics = "cam-1", "cam-2"
    for topic in topics:
        write_rows(store, days=2, topic=topic)
    event = run_started("01T00:00", "a")
    settings = {**event.data["settings"], "kafka": {"topic": "cams", "topic_pattern": "cam-.*"}}
    append_event(store, replace(event, topic="cams", data={**event.data, "settings": settings}))
    figures = gather(store, Asked(until_ms=at("03T00:00"), verified=False), now_ms=END_MS)
    assert figures.streams == {"cams": {*topics}}
    (run,) = figures.history.runs
    assert run.judged == figures.tally.all.scored
    assert f"It judged {run.judged:,}." in promise(figures, "cams")[0]
    page = render(figures)
    assert "cam-1: " not in page
    one = gather(store, Asked(topic="cam-1", verified=False), now_ms=END_MS)
    assert promise(one, "cams") == [
        "cams: the promise is about all of it, and this is of cam-1 alone."
    ]


def test_the_promise_is_compared_with_what_began(month: Figures) -> None:
    assert sum(run.judged for run in month.history.runs) == month.tally.all.scored
    first, second = promise(month, TOPIC)
    assert first.endswith(f"at most T / 25,920. It judged {month.tally.all.scored:,}.")
    most = month.tally.all.scored / 25_920
    assert f"of even one would have been at most {100 * most:.3g} %: that can be chance" in second
    quiet = replace(month, history=replace(month.history, episodes=()))
    assert promise(quiet, TOPIC)[1] == "No alert of drift began, so none was false."

    def of(*runs: tuple[int, int], figures: Figures = month) -> list[str]:
        """By how many images each run judged, and A."""
        found = []
        for judged, length in runs:
            event = run_started("01T00:00", "c", false_alarms=None, expected_run_length=length)
            found.append(replace(month.history.runs[0], started=event, judged=judged))
        own = replace(figures.history, runs=tuple(found))
        return promise(replace(figures, history=own), TOPIC)

    assert "at most 4.99 %: a change of the stream is the likelier reason" in of((499, 10_000))[1]
    assert "at most 5 %: that can be chance" in of((500, 10_000))[1]
    assert "at most 99 %: that can be chance" in of((990, 1_000))[1]
    assert "the promise excludes nothing: some alerts can be chance" in of((1_000, 1_000))[1]
    # A short trial by a strict promise says little of a long run by another.
    trial, run = of((10, 1_000), (100_000, 10_000_000))
    assert "at most T / A, with A from 1,000 to 10,000,000 by run. It judged 100,010." in trial
    assert "at most 2 %: a change of the stream is the likelier reason" in run
    assert "T / 10,000,000. It judged 5." in of((0, 1_000), (5, 10_000_000))[0]
    nothing = "there is nothing to judge: no image was scored under a stated promise."
    assert of((0, 1_000)) == [f"{TOPIC}: {nothing}"]
    assert "no run of the period states its promise" in of()[0]


def test_a_chart_by_hand() -> None:
    counts = {
        ("a", 0): Count(10, 10, 1),
        ("a", 5): Count(10, 10, 0),
        ("b", 5): Count(9, 9, 9),
        ("a", 10): Count(10, 0, 0),
        ("a", 15): Count(20, 20, 4),
    }
    points = coarser(counts, 10, "a")
    assert points == {0: Count(20, 20, 1), 10: Count(30, 20, 4)}
    fine = coarser(counts, 5, "a")
    bounds = [((-9, -5), 0.1), ((-5, 8), 0.1), ((12, 99), 0.16)]
    chart = ood_chart("a", fine, 5, bounds=bounds, alerts=(), axis=Axis(0, 20))
    # The upper edge is 1.25 * 0.2.
    assert chart.line == "M0.0 60.0H25.0V100.0H50.0M75.0 20.0H100.0"
    assert chart.bound == "M0.0 60.0H40.0 M60.0 36.0H100.0"
    assert chart.shares == ((60.0, "10 %"), (20.0, "20 %"))
    assert chart.band.count("Z") == 3


def test_pictures_are_small_and_encoded_anew(tmp_path: Path) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (640, 320), "red").save(encoded, "JPEG", comment=b"<script>")
    content = encoded.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    day = tmp_path / "2026-05-01"
    day.mkdir()
    (day / digest).write_bytes(content)
    broken = hashlib.sha256(b"no image").hexdigest()
    (day / broken).write_bytes(b"no image")
    other = "0" * 64
    (day / other).write_bytes(content)
    picture = kept_in(LocalStore(tmp_path))

    head, _, data = picture(digest, at("01T12:00")).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("PNG", (SIDE, SIDE // 2))
        assert image.convert("RGB").getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=2)
    for name, why in (
        (broken, "it looks like text"),
        (other, "not the image that its name says"),
        ("1" * 64, "not kept"),
        ("../2026-05-01/" + digest, "not kept"),
    ):
        with pytest.raises(InputDataError, match=why):
            picture(name, at("01T12:00"))


def test_a_frame_is_shown_as_the_configuration_says(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[..., 2] = 200
    content = pixels.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "2026-05-01").mkdir()
    (tmp_path / "2026-05-01" / digest).write_bytes(content)
    raw = {"format": "bgr8", "width": 8, "height": 4}
    # Its colours are shown, whatever order the model takes them in.
    own = settings(model={"preprocessing": {"raw": raw, "channel_order": "bgr"}})
    _, _, data = kept_in(LocalStore(tmp_path), own)(digest, at("01T12:00")).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (8, 4)
        assert image.convert("RGB").getpixel((1, 1)) == (200, 0, 0)
    with pytest.raises(InputDataError, match="cannot be decoded"):
        kept_in(LocalStore(tmp_path))(digest, at("01T12:00"))


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("light", 1200, False),
        ("dark", 1200, True),
        ("narrow", 400, False),
        ("narrow-dark", 400, True),
    ],
)
def test_what_it_looks_like(
    month: Figures, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / f"{name}.png"
    page.write_text(render(month), encoding="utf-8")
    screenshot(page, picture, width=width, height=6_000, dark=dark)
    print(f"look at {picture}")  # noqa: T201  it is for people
    with Image.open(picture) as image:
        assert image.height == 6_000
        colours = image.convert("L").crop((0, 0, width, 2_000)).histogram()
    # The page's ground, light or dark, is most of it; and there is something on it.
    ground = max(range(256), key=colours.__getitem__)
    assert (ground < 60) is dark
    assert sum(colours) * 0.5 < colours[ground] < sum(colours) * 0.99


def test_no_part_is_wider_than_a_narrow_screen(month: Figures, tmp_path: Path) -> None:
    """The same page, with a script of the test's own that measures it."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    measure = "document.title = document.documentElement.scrollWidth"
    page = policy.sub("", render(month)).replace("</body>", f"<script>{measure}</script></body>")
    frame = tmp_path / "frame.html"
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    script = "f.onload = () => document.title = f.contentDocument.title"
    frame.write_text(
        f'<iframe id="f" src="page.html" width="400"></iframe><script>{script}</script>'
    )
    found = chromium(tmp_path / "profile", frame, "--dump-dom", "--allow-file-access-from-files")
    title = re.search(r"<title>(\d+)</title>", found)
    assert title is not None, browser()
    assert int(title[1]) == 400
