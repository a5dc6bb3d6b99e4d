"""What a report says in sentences: the four answers on its first screen, and about the promise."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nap_stream.report.gather import Figures
from nap_stream.report.history import Span
from nap_stream.scored_log.events import Event
from nap_stream.text import duration, number, percent, rfc3339

Named = tuple[str, Span]
"""A topic, and a stretch of time."""
ABOUT = {"drift": "drift", "unscored": "images without scores", "gap": "missing offsets"}
_NO_EVENTS = "The log holds no events: what monitors did is not recorded in it."


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, how good its answer is (good, bad, unknown or neutral), and the answer."""

    question: str
    state: str
    verdict: str
    sentences: Sequence[str]


def answers(f: Figures, silent: Sequence[Named], off: Sequence[Named], least: str) -> list[Answer]:
    """Answer what is asked first.

    ``silent`` are the stretches of at least ``least`` without images, by topic, ``off`` those
    without a monitor.
    """
    return [_always_on(f, silent, off, least), _is_whole(f), _happened(f), _open(f)]


def _always_on(f: Figures, silent: Sequence[Named], off: Sequence[Named], least: str) -> Answer:
    quiet = f"There is no stretch of {least} without an image."
    if silent:
        quiet = f"No image came for {_together(silent)} of at least {least}."
    state, verdict, words = "good", "Yes", ["A monitor ran throughout the period."]
    if f.history.last is None:
        state, verdict, words = "unknown", "Not recorded", [_NO_EVENTS]
    elif not f.history.runs:
        state, verdict, words = "bad", "No", ["No event tells of a monitor in this period."]
    elif off:
        start, end = max((span for _, span in off), key=lambda span: span[1] - span[0])
        state, verdict = "bad", "No"
        longest = f"the longest from {when(start)} to {when(end)}"
        words = [f"No monitor is known to have run for {_together(off)}, {longest}."]
    if f.history.runs and f.history.runs[-1].stopped is None:
        began = when(f.history.runs[-1].start_ms)
        words.append(f"The run that began {began} has no recorded end: it runs, or was killed.")
    return Answer("Was monitoring always on?", state, verdict, [*words, quiet])


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
            words.append(
                f"The chains of {many(found.partitions, 'partition')} hold together: "
                f"{many(found.segments, 'segment')}, {many(found.rows, 'row')}. Footers were "
                "checked, values were not."
            )
        gaps = f"{many(len(found.gaps), 'declared gap')} of {many(found.gap_offsets, 'offset')}"
        words.append(f"{gaps} that were never read." if found.gaps else "No gap is declared.")
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
    """Say whether the promise about false alarms was kept for a topic."""
    own = [run.run_length for run in f.history.runs if run.started.topic == topic]
    lengths = [length for length in own if length is not None]
    if not lengths and f.asked.stated is not None:
        lengths = [f.asked.stated.run_length]
    if f.history.last is None:
        return [f"{topic}: {_NO_EVENTS}"]
    if not lengths:
        return [f"{topic}: no run of the period states its promise as a number of images."]
    judged = sum(count.scored for (name, _), count in f.tally.times.items() if name == topic)
    length, allowed = min(lengths), judged / min(lengths)
    stated = (
        f"{topic}: the monitor promised that, while the stream is in-distribution, the probability "
        f"of any false alarm within T images is at most T / {number(length)}. It judged "
        f"{number(judged)}."
    )
    alerts = (each for each in f.history.episodes if (each.topic, each.about) == (topic, "drift"))
    began = sum(each.start_ms >= f.since_ms for each in alerts)
    if not began:
        return [stated, "No alert of drift began: the promise was kept."]
    if allowed < 1:
        found = (
            f"{many(began, 'alert')} of drift began. Had all images been in-distribution, the "
            f"probability of even one would have been at most {percent(allowed)}: a change of the "
            "stream is the likelier reason. Whether one was false, those who looked can say."
        )
    else:
        than = "no more" if began <= allowed else "more"
        found = (
            f"{many(began, 'alert')} of drift began, {than} than the {number(allowed)} false ones "
            "that the promise allows for."
        )
    return [stated, found]


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
    lengths = [end - start for _, (start, end) in spans]
    stretches = "1 stretch" if len(lengths) == 1 else f"{len(lengths):,} stretches"
    return f"{lasting(sum(lengths))} in {stretches}"


def comment(event: Event) -> str:
    """What somebody said who acknowledged or accepted an alert."""
    return str(event.data.get("comment") or event.data.get("reason") or "no comment")
