"""Where the chains of a first run start, and what a run tells others of itself."""

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import (
    BrokerUnavailableError,
    LogRootError,
    OffsetRangeError,
    WorkerError,
    WorkerGaveUpError,
)
from nap_stream.monitor.driver import Ending, RunResult
from nap_stream.monitor.mailbox import Stage
from nap_stream.monitor.run import begin_chains, follow_reloads, scrape_target
from nap_stream.monitor.setup import Setup
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.format import ROWS
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
from tests.monitor.test_driver import status
from tests.monitor.test_reload import ANN, NEW, OLD, Run
from tests.support.memory_store import MemoryStore


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    return tmp_path / "targets" / "nap.json"


@pytest.fixture
def settings(tmp_path: Path, target_file: Path) -> Settings:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "monitor.yaml").write_text(
        f"""
kafka: {{topic: images}}
model: {{factory: torchvision:resnet18, weights: calibration}}
calibration: calibration
log: {{root: log}}
metrics: {{discovery_file: {target_file}}}
""",
        encoding="utf-8",
    )
    return load_settings(tmp_path / "monitor.yaml")


class CutShort(BaseException):
    """The start dies here."""


class Mortal(MemoryStore):
    """Dies when so many markers are written."""

    left = 99

    def create(self, path: str, content: bytes) -> bool:
        if self.left == 0:
            raise CutShort
        self.left -= 1
        return super().create(path, content)


def new_log(store: MemoryStore | None = None) -> ScoredLog:
    writer = WriterIdentity("driver", "0" * 64, "1" * 64)
    return ScoredLog(store or MemoryStore(), writer, ManualClock())


def between(
    name: TopicPartition, earliest: int = 3, committed: int | None = None
) -> PartitionOffsets:
    return PartitionOffsets(name, earliest, 10, committed, "id")


def begun(log: ScoredLog, names: Sequence[TopicPartition]) -> list[int | None]:
    return [None if end is None else end.offset for end in map(log.end, names)]


@pytest.mark.parametrize("cut", range(5))
def test_a_first_start_that_was_cut_short_is_a_first_start_again(cut: int) -> None:
    """Two topics with messages [3, 10), of which the group has committed in one partition."""
    store = Mortal()
    log = new_log(store)
    names = [TopicPartition(*one) for one in (("a", 0), ("b", 0), ("b", 1), ("b", 2))]
    offsets = [between(one, 3, 5 if one == names[2] else None) for one in names]
    store.left = cut
    with suppress(CutShort):
        begin_chains(log, offsets, "latest", "committed")
    store.left = 99
    begin_chains(log, offsets, "latest", "committed")
    assert begun(log, names) == [10, 10, 5, 10]
    added = TopicPartition("b", 3)
    begin_chains(log, [*offsets, between(added, 0)], "latest")
    assert log.end(added) is None, "it is its worker's"


def test_a_group_that_has_read_what_the_log_has_nothing_of_is_refused() -> None:
    """Its disk is not mounted, or was lost."""
    log, names = new_log(), [TopicPartition("images", number) for number in range(3)]
    offsets = [between(one, 3, None if one == names[0] else 7) for one in names]
    with pytest.raises(LogRootError, match="has read 2 partitions, and the log has none") as caught:
        begin_chains(log, offsets, "earliest")
    assert caught.value.where == "memory"
    assert "kafka.resume_from: committed" in caught.value.action
    assert begun(log, names) == [None] * 3
    begin_chains(log, offsets, "earliest", "committed")
    assert begun(log, names) == [3, 7, 7]
    begin_chains(log, offsets, "earliest")


def test_no_chain_is_begun_past_the_end_of_the_topic() -> None:
    log = new_log()
    name = TopicPartition("images", 0)
    with pytest.raises(OffsetRangeError, match=r"new kafka\.group_id"):
        begin_chains(log, [PartitionOffsets(name, 0, 10, 99, "id")], "earliest", "committed")
    assert log.end(name) is None


@pytest.mark.parametrize(("start", "offset"), [("earliest", 3), ("latest", 10)])
def test_a_first_start_fixes_all_chains(start: Literal["earliest", "latest"], offset: int) -> None:
    log = new_log()
    names = [TopicPartition("images", number) for number in range(3)]
    begin_chains(log, [PartitionOffsets(name, 3, 10, None, "id") for name in names], start)
    for name in names:
        position = log.end(name)
        assert position is not None
        assert (position.offset, position.topic_id) == (offset, "id")


def test_a_topic_that_was_added_begins_where_it_does_now() -> None:
    """What retention took of it before was never asked for: no loss."""
    log, old = new_log(), TopicPartition("m", 0)
    position = log.begin(old, 3, "id")
    log.publish(old, position, 10, ROWS.empty_table(), gap="nothing there")
    added = [TopicPartition(topic, number) for topic in ("a", "z") for number in range(2)]
    begin_chains(log, [between(one, 3, 7) for one in (old, *added)], "latest")
    assert begun(log, [old, *added]) == [10, 3, 3, 3, 3]


class Runs:
    """What `follow_reloads` is given: runs that end, or fail, one after the other."""

    def __init__(self, *ends: Ending | Exception) -> None:
        self.ends, self.seen = list(ends), list[str]()
        self.of, self.stop = Run(now=NEW), threading.Event()
        self.in_the_way: list[Exception] = []

    def __call__(self, setup: Setup) -> RunResult:
        self.seen.append("new" if setup.settings == NEW else "old")
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        if end is Ending.RELOAD:
            self.of.look_until(ANN, Stage.REPLACING)
        return RunResult(end, status(rows=4), ())

    def follow(self) -> RunResult:
        def make_way() -> None:
            self.seen.append("way")
            if self.in_the_way:
                raise self.in_the_way.pop(0)

        return follow_reloads(
            *(self.of.preflight(OLD), self),
            reloader=self.of.reloader,
            stop=self.stop,
            make_way=make_way,
        )


def test_a_reload_is_followed_by_another_run() -> None:
    runs = Runs(Ending.RELOAD, Ending.ENOUGH_RECORDS)
    assert runs.follow().ending is Ending.ENOUGH_RECORDS
    assert runs.seen == ["old", "way", "new"]


@pytest.mark.parametrize("error", [WorkerGaveUpError("it failed"), RuntimeError("of Ray")])
def test_a_run_by_new_settings_that_fails_is_followed_by_one_by_those_of_before(
    error: Exception,
) -> None:
    runs = Runs(Ending.RELOAD, error, Ending.STOPPED)
    assert runs.follow().ending is Ending.STOPPED
    assert runs.seen == ["old", "way", "new", "way", "old"]


def test_what_is_away_for_a_while_ends_no_monitor_on_its_way_back() -> None:
    away = BrokerUnavailableError("no broker answers")
    runs = Runs(Ending.RELOAD, away, away, away, Ending.STOPPED)
    runs.of.away = 2
    assert runs.follow().ending is Ending.STOPPED
    assert runs.seen == ["old", "way", "new", *["way", "old"] * 3]
    assert runs.of.away == 0, "and so was the calibration"


def test_a_coordinator_that_does_not_go_keeps_nobody_from_the_way_back() -> None:
    runs = Runs(Ending.RELOAD, Ending.STOPPED)
    runs.in_the_way = [WorkerError("still there"), WorkerError("still there")]
    assert runs.follow().ending is Ending.STOPPED
    assert runs.seen == ["old", "way", "way", "way", "old"]


def test_a_run_that_fails_by_itself_is_the_end() -> None:
    runs = Runs(WorkerGaveUpError("it failed"))
    with pytest.raises(WorkerGaveUpError, match="it failed"):
        runs.follow()
    both = Runs(Ending.RELOAD, WorkerGaveUpError("new"), WorkerGaveUpError("old"))
    with pytest.raises(WorkerGaveUpError, match="old"):
        both.follow()


def test_a_stop_that_comes_during_a_reload_is_the_end() -> None:
    runs = Runs(Ending.RELOAD)
    end = runs.__call__

    def stopped(setup: Setup) -> RunResult:
        result = end(setup)
        runs.stop.set()
        return result

    result = follow_reloads(
        *(runs.of.preflight(OLD), stopped),
        reloader=runs.of.reloader,
        stop=runs.stop,
        make_way=lambda: pytest.fail("nothing follows"),
    )
    assert (result.ending, runs.seen) == (Ending.STOPPED, ["old"])
    assert result.status is not None


def test_a_stop_that_comes_before_a_run_is_the_end() -> None:
    runs = Runs()
    runs.stop.set()
    assert runs.follow().ending is Ending.STOPPED


def test_prometheus_is_told_where_the_coordinator_is_and_when_there_is_none(
    settings: Settings, target_file: Path
) -> None:
    labels = {"nap_stream_monitor": settings.alerts.monitor, "nap_stream_topic": "images"}
    with scrape_target(settings) as note:
        note(None)
        assert not target_file.exists()
        for address in ("10.0.0.1:9464", "10.0.0.2:9464", "[::1]:9464"):
            note(f"http://{address}/metrics")
            assert json.loads(target_file.read_bytes()) == [
                {"targets": [address], "labels": labels}
            ]
    assert json.loads(target_file.read_bytes()) == []


def test_a_file_that_cannot_be_written_is_told_and_the_run_goes_on(
    settings: Settings, target_file: Path
) -> None:
    target_file.parent.write_text("in the way", encoding="utf-8")
    with capture_logs() as logs, scrape_target(settings) as note:
        note("http://10.0.0.1:9464/metrics")
    assert {each["event"] for each in logs} == {"discovery_file_not_written"}
