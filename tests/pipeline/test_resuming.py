"""Where the line goes on, for every way in which log, commit and topic can disagree."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from nap_stream.errors import OffsetRangeError, TopicReplacedError
from nap_stream.pipeline.partition import ResumeFrom, disagreement, require_same_topic
from nap_stream.records import ChainPosition, Disagreement
from tests.pipeline.bench import FIRST, Bench
from tests.support.doubles import MemoryTopic
from tests.support.log_files import footers_in, paths_in

EMPTY = ChainPosition(5, "0" * 64)
CHAIN = ChainPosition(5, "0" * 64, base=3)


@pytest.fixture
def bench() -> Bench:
    return Bench(MemoryTopic("images", 1))


def fill(bench: Bench, count: int) -> None:
    for _ in range(count):
        bench.topic.append(FIRST, b"g")


def logged(bench: Bench, count: int) -> None:
    """Have the log and the group stand at ``count``."""
    fill(bench, count)
    bench.run(lambda: bench.topic.committed.get(FIRST) == count)
    bench.told.summaries.clear()


def counted(bench: Bench) -> tuple[int, int, int]:
    last = bench.told.reports[-1]
    return last.offsets_ahead, last.offsets_behind, last.offsets_missing


@pytest.mark.parametrize(
    ("position", "committed", "kind"),
    [
        (CHAIN, 5, None),
        (CHAIN, 6, Disagreement.AHEAD),
        (CHAIN, 4, Disagreement.BEHIND),
        (CHAIN, None, Disagreement.MISSING),
        (EMPTY, 5, None),
        (EMPTY, None, None),
        (EMPTY, 9, Disagreement.AHEAD),
    ],
)
def test_what_counts_as_a_disagreement(
    position: ChainPosition, committed: int | None, kind: Disagreement | None
) -> None:
    assert disagreement(position, committed) is kind


def test_a_commit_ahead_of_the_log_is_read_from_the_log_on(bench: Bench) -> None:
    logged(bench, 10)
    fill(bench, 20)
    bench.topic.committed[FIRST] = 25

    with capture_logs() as events:
        bench.run(lambda: bench.topic.committed.get(FIRST) == 30)

    assert bench.offsets() == [(offset, 0) for offset in range(30)]
    assert counted(bench) == (1, 0, 0)
    (told,) = [event for event in events if event["event"] == "committed_offset_differs"]
    assert (told["log_level"], told["committed_offset"]) == ("warning", "ahead")
    (assigned,) = [event for event in events if event["event"] == "partition_assigned"]
    assert (assigned["log_end"], assigned["committed"], assigned["offset"]) == (10, 25, 10)


def test_a_commit_ahead_of_the_log_may_win_and_the_span_between_is_a_gap(bench: Bench) -> None:
    logged(bench, 10)
    fill(bench, 20)
    bench.topic.committed[FIRST] = 25
    bench.resume_from = "committed"

    bench.run(lambda: bench.topic.committed.get(FIRST) == 30)

    assert bench.offsets() == [(offset, 0) for offset in (*range(10), *range(25, 30))]
    (gap,) = [summary for summary in bench.told.summaries if summary.gap]
    assert (gap.base_offset, gap.end_offset) == (10, 25)
    assert "kafka.resume_from" in (gap.gap or "")
    assert counted(bench) == (1, 0, 0)


def test_what_retention_took_is_not_called_left_out(bench: Bench) -> None:
    logged(bench, 10)
    fill(bench, 20)
    bench.topic.delete_before(FIRST, 17)
    bench.topic.committed[FIRST] = 25
    bench.resume_from = "committed"

    bench.run(lambda: bench.topic.committed.get(FIRST) == 30)

    gaps = [summary for summary in bench.told.summaries if summary.gap]
    assert [(gap.base_offset, gap.end_offset) for gap in gaps] == [(10, 17), (17, 25)]
    assert ["retention" in (gap.gap or "") for gap in gaps] == [True, False]


@pytest.mark.parametrize("resume_from", ["log", "committed"])
def test_a_commit_behind_the_log_never_wins(bench: Bench, resume_from: str) -> None:
    logged(bench, 10)
    fill(bench, 5)
    bench.topic.committed[FIRST] = 4
    bench.resume_from = "committed" if resume_from == "committed" else "log"

    with capture_logs() as events:
        bench.run(lambda: bench.topic.committed.get(FIRST) == 15)

    assert bench.offsets() == [(offset, 0) for offset in range(15)]
    assert counted(bench) == (0, 1, 0)
    (told,) = [event for event in events if event["event"] == "committed_offset_differs"]
    assert (told["log_level"], told["committed_offset"]) == ("info", "behind")


def test_a_commit_that_is_missing_is_made_up_for_by_the_log(bench: Bench) -> None:
    logged(bench, 10)
    fill(bench, 5)
    del bench.topic.committed[FIRST]

    bench.run(lambda: bench.topic.committed.get(FIRST) == 15)

    assert bench.offsets() == [(offset, 0) for offset in range(15)]
    assert counted(bench) == (0, 0, 1)


def test_with_neither_log_nor_commit_nothing_disagrees(bench: Bench) -> None:
    fill(bench, 5)

    with capture_logs() as events:
        bench.run(lambda: bench.topic.committed.get(FIRST) == 5)

    assert counted(bench) == (0, 0, 0)
    assert "committed_offset_differs" not in [event["event"] for event in events]


@pytest.mark.parametrize(
    ("committed", "resume_from", "first"),
    [(None, "log", 0), (3, "log", 0), (99, "log", 0), (3, "committed", 3)],
)
def test_a_chain_that_a_worker_begins_begins_at_0_whatever_was_committed(
    bench: Bench, committed: int | None, resume_from: ResumeFrom, first: int
) -> None:
    """The partition was added later; the offset is of a topic of before, or another's."""
    fill(bench, 5)
    bench.resume_from = resume_from
    if committed is not None:
        bench.topic.committed[FIRST] = committed

    with capture_logs() as events:
        bench.run(lambda: bench.topic.committed.get(FIRST) == 5)

    (begun,) = [event for event in events if event["event"] == "chain_begun"]
    level = "info" if committed is None else "warning"
    assert (begun["log_level"], begun["offset"], begun["committed"]) == (level, 0, committed)
    assert bench.offsets() == [(offset, 0) for offset in range(first, 5)]
    gaps = [(one.base_offset, one.end_offset) for one in bench.told.summaries if one.gap]
    assert gaps == [(0, first)][: int(first > 0)]


def test_a_log_and_a_commit_that_agree_are_not_mentioned(bench: Bench) -> None:
    logged(bench, 10)
    fill(bench, 5)

    bench.run(lambda: bench.topic.committed.get(FIRST) == 15)

    assert counted(bench) == (0, 0, 0)


def test_a_commit_past_the_end_of_the_topic_is_never_followed(bench: Bench) -> None:
    logged(bench, 10)
    bench.topic.committed[FIRST] = 99
    bench.resume_from = "committed"

    with pytest.raises(OffsetRangeError, match="committed offset is 99, and the topic ends at 10"):
        bench.run(lambda: False)

    assert [footer.end_offset for footer in footers_in(bench.store, FIRST)][-1] == 10


def test_a_topic_that_was_made_anew_is_refused_and_the_log_stays_as_it_was(bench: Bench) -> None:
    logged(bench, 10)
    before = paths_in(bench.store, FIRST)
    bench.topic = MemoryTopic("images", 1, topic_id="topic-1")
    fill(bench, 20)

    with pytest.raises(TopicReplacedError, match=r"topic-1.*topic-0.*new log\.root"):
        bench.run(lambda: False)

    assert paths_in(bench.store, FIRST) == before
    assert bench.topic.committed == {}


def test_the_id_of_the_topic_is_kept_in_the_chain(bench: Bench) -> None:
    logged(bench, 10)

    end = bench.log().end(FIRST)

    assert end is not None
    assert end.topic_id == "topic-0"
    assert {footer.topic_id for footer in footers_in(bench.store, FIRST)} == {"topic-0"}


def test_a_chain_without_an_id_takes_that_of_the_topic_from_now_on() -> None:
    assert require_same_topic(FIRST, CHAIN, "a") == replace(CHAIN, topic_id="a")
    assert require_same_topic(FIRST, CHAIN, None) == CHAIN


def test_a_broker_that_tells_no_id_is_believed() -> None:
    known = replace(CHAIN, topic_id="a")

    assert require_same_topic(FIRST, known, None) == known
    assert require_same_topic(FIRST, known, "a") == known
