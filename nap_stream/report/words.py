"""What a report says in sentences: the four answers on its first screen, and about the promise."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nap_stream.report.counts import Count
from nap_stream.report.gather import Figures
from nap_stream.report.history import Span
from nap_stream.scored_log.events import Event
from nap_stream.text import duration, listed, number, percent, plain, rfc3339

Named = tuple[str, Span]
"""A topic, and a stretch of time."""
ABOUT = {"drift": "drift", "unscored": "images without scores", "gap": "missing offsets"}
_RARE = 0.05
"""What is less probable than this is not taken for chance."""
_CHANCE = "that can be chance, or a change of the stream"
_UNSURE = "No row was scored after that, which is so too while no image comes."
_NO_EVENTS = "The log holds no events: what monitors did is not recorded in it."


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, how good its answer is (good, bad, unknown or neutral), and the answer."""

    question: str
    state: str
    verdict: str
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Stretches of a period by topic.

    In those of ``silent`` no image came, of ``late`` images came and none was scored. They are
    of the clock, ``least`` long or more. In those of ``off`` no monitor ran; of ``unsure`` nothing
    tells. ``stopped`` are the keys that were seen no more.
    """

    least: str
    silent: Sequence[Named]
    late: Sequence[Named]
    off: Sequence[Named]
    unsure: Sequence[Named]
    stopped: Sequence[tuple[str, Count]]


def answers(f: Figures, cover: Coverage) -> list[Answer]:
    """Answer what is asked first."""
    return [_always_on(f, cover), _is_whole(f), _happened(f), _open(f)]


def _always_on(f: Figures, cover: Coverage) -> Answer:
    state, verdict, words = "good", "Yes", ["By their events, a monitor ran throughout the period."]
    if f.history.last is None:
        state, verdict, words = "unknown", "Not recorded", [_NO_EVENTS]
    elif not f.history.runs:
        state, verdict, words = "bad", "No", ["No event tells of a monitor in this period."]
    elif cover.off:
        start, end = max((span for _, span in cover.off), key=lambda span: span[1] - span[0])
        state, verdict = "bad", "No"
        longest = f"the longest from {when(start)} to {when(end)}"
        words = [f"No monitor is known to have run for {_together(cover.off)}, {longest}."]
    elif cover.unsure:
        since = when(min(start for _, (start, _) in cover.unsure))
        state, verdict, words = "unknown", f"Not known since {since}", [_UNSURE]
    elif cover.late:
        state, verdict = "unknown", "It ran, and was late"
    open_ended = [run for run in f.history.runs if run.end_ms is None]
    if open_ended:
        began = listed([when(run.start_ms) for run in open_ended])
        runs = "run that began" if len(open_ended) == 1 else "runs that began"
        has = "has" if len(open_ended) == 1 else "have"
        words.append(f"The {runs} {began} {has} no recorded end: it runs, or was killed.")
    if cover.late:
        lag = lasting(max(0, *f.tally.lags))
        words.append(
            f"Images came and none was scored for {_together(cover.late)} of at least "
            f"{cover.least}; the longest lag is {lag}."
        )
    clock = "clock hour" if cover.least == "1 h" else f"{cover.least} of the clock"
    quiet = f"There is no {clock} without an image."
    if cover.silent:
        quiet = f"No image came for {_together(cover.silent)} of at least {cover.least}."
    words.append(quiet)
    if cover.stopped:
        words.append(f"{many(len(cover.stopped), 'key')} stopped sending before the others.")
    return Answer("Was monitoring always on?", state, verdict, words)


def _is_whole(f: Figures) -> Answer:
    found, defects = f.verified, f.defects
    state, verdict = ("bad", "No") if defects or f.unread else ("good", "Yes")
    words = [f"{many(len(defects), 'defect')} named below."] if defects else []
    words += [f"{many(len(f.unread), 'file')} could not be read."] if f.unread else []
    if found is None:
        state = "bad" if words else "unknown"
        verdict, words = "Not checked", ["It was not verified for this report.", *words]
    else:
        if not words:
            level = "Every value was read." if found.deep else "Footers were checked, values not."
            words.append(
                f"The chains of {many(found.partitions, 'partition')} hold together: "
                f"{many(found.segments, 'segment')}, {many(found.rows, 'row')}. {level}"
            )
            if found.gaps:
                state, verdict = "unknown", f"Except for {many(found.gap_offsets, 'offset')}"
        if f.anchors is not None:
            seen = sum(chain.anchored_offset is not None for chain in f.anchors.chains)
            words.append(
                f"{many(seen, 'chain')} of {number(len(f.anchors.chains))} agree with a signed "
                f"checkpoint; the newest is of {when(f.anchors.newest_time_ms)}."
            )
        gaps = f"{many(len(found.gaps), 'declared gap')} of {many(found.gap_offsets, 'offset')}"
        words.append(f"{gaps} that were never read." if found.gaps else "No gap is declared.")
    if f.pruned:
        if state == "good":
            state, verdict = "unknown", "But for what was pruned"
        words += [f"{sentence}." for sentence in f.pruned]
    return Answer("Is the log whole?", state, verdict, words)


def _happened(f: Figures) -> Answer:
    rows, ask = f.tally.all, "What happened?"
    if not rows.rows:
        words = ["No image has its event time in this period."]
        return Answer(ask, "unknown", "Nothing was logged", words)
    begun = Counter(each.about for each in f.history.episodes)
    told = [f"{many(begun[kind], 'alert')} of {ABOUT[kind]}" for kind in ABOUT if begun[kind]]
    none = "Not recorded" if f.history.last is None else "No alert"
    unscored = rows.rows - rows.scored
    without = f"{number(unscored)} of them without scores" if unscored else "all with scores"
    words = [f"{many(rows.rows, 'image')} in {many(len(f.topics), 'topic')}, {without}."]
    if rows.scored:
        words.append(
            f"{number(rows.ood)} of {number(rows.scored)} ({percent(rows.share)}; 95 % interval "
            f"{interval(rows.interval)}) were flagged as out-of-distribution."
        )
    return Answer(ask, "neutral", ", ".join(told).capitalize() or none, words)


def _open(f: Figures) -> Answer:
    counts = (
        (sum(e.end_ms is None for e in f.history.episodes), "alert", "without an end"),
        (sum(not e.answers for e in f.history.episodes), "alert", "that nobody has answered"),
        (len(f.defects), "defect", "of the log"),
        (len(f.unread), "file", "could not be read"),
    )
    words = [f"{many(count, what)} {rest}." for count, what, rest in counts if count]
    state, verdict = ("bad", "To be looked at") if words else ("good", "Nothing")
    if not words and f.history.last is None:
        state, verdict, words = "unknown", "Not recorded", [_NO_EVENTS]
    return Answer("What is open?", state, verdict, words or ["Each alert is over and answered."])


def promise(f: Figures, topic: str) -> list[str]:
    """Say what the promise about false alarms, and the alerts of drift, tell of a stream."""
    if f.history.last is None:
        return [f"{topic}: {_NO_EVENTS}"]
    if f.asked.topic not in {None, topic}:
        return [f"{topic}: the promise is about all of it, and this is of {f.asked.topic} alone."]
    own = [run for run in f.history.runs if run.started.topic == topic]
    own_topics = f.streams.get(topic, frozenset({topic}))
    stated = [(run.judged, run.run_length) for run in own if run.run_length is not None]
    if not stated and f.asked.stated is not None:
        scored = sum(
            count.scored for (name, _), count in f.tally.times.items() if name in own_topics
        )
        stated = [(scored, f.asked.stated.run_length)]
    if not stated:
        return [f"{topic}: no run of the period states its promise as a number of images."]
    judged = sum(count for count, _ in stated)
    if not judged:
        return [f"{topic}: there is nothing to judge: no image was scored under a stated promise."]
    # A false alarm of any run is at most as probable as the sum over runs.
    most = sum(count / length for count, length in stated)
    lengths = sorted({length for count, length in stated if count})
    those = number(lengths[0])
    if len(lengths) > 1:
        those = f"A, with A from {those} to {number(lengths[-1])} by run"
    said = (
        f"{topic}: the monitor promised that, while the stream is in-distribution, the probability "
        f"of any false alarm within T images is at most T / {those}. It judged {number(judged)}."
    )
    alerts = (each for each in f.history.episodes if (each.topic, each.about) == (topic, "drift"))
    began = sum(each.start_ms >= f.since_ms for each in alerts)
    if not began:
        return [said, "No alert of drift began, so none was false."]
    found = f"{many(began, 'alert')} of drift began. "
    if most >= 1:
        found += "Of so many images the promise excludes nothing: some alerts can be chance."
    else:
        likelier = "a change of the stream is the likelier reason" if most < _RARE else _CHANCE
        found += (
            "Had all images been in-distribution, the probability of even one would have been at "
            f"most {percent(most)}: {likelier}."
        )
    return [said, f"{found} Whether one was false, those who looked can say."]


def when(time_ms: int) -> str:
    """A time as people write it, UTC: to the second, or to the minute where that is exact."""
    return rfc3339(time_ms)[:19].removesuffix(":00").replace("T", " ")


def lasting(time_ms: int) -> str:
    """A length of time: to three digits below a minute, else by its two largest units."""
    if time_ms < 1_000:  # noqa: PLR2004
        return f"{time_ms} ms"
    return f"{time_ms / 1_000:.3g} s" if time_ms < 60_000 else duration(time_ms)  # noqa: PLR2004


def interval(ends: tuple[float, float]) -> str:
    """Both ends of an interval of shares."""
    return f"{100 * ends[0]:.3g} to {percent(ends[1])}"


def many(count: int, what: str) -> str:
    """A number of things, one or more."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def _together(spans: Iterable[Named]) -> str:
    """How long, in how many stretches; of several topics, as long as that of which it is most."""
    lengths: dict[str, list[int]] = {}
    for topic, (start, end) in spans:
        lengths.setdefault(topic, []).append(end - start)
    longest, count = max(map(sum, lengths.values())), sum(map(len, lengths.values()))
    stretches = "1 stretch" if count == 1 else f"{count:,} stretches"
    if len(lengths) == 1:
        return f"{lasting(longest)} in {stretches}"
    return f"up to {lasting(longest)} of a topic, in {stretches} of {len(lengths):,} topics"


def comment(event: Event) -> str:
    """What somebody said who acknowledged or accepted an alert, or erased images."""
    return plain(event.data.get("comment") or event.data.get("reason") or "no comment")
