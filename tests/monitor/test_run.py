"""Where the chains of a first run start, and what a run tells others of itself."""

import json
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import ManualClock
from nap_stream.errors import OffsetRangeError
from nap_stream.monitor.run import begin_chains, scrape_target
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
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


def test_a_first_start_that_was_cut_short_is_a_first_start_again() -> None:
    """Three partitions with messages [3, 10), of which the group has committed in the second."""
    store, clock = MemoryStore(), ManualClock()
    log = ScoredLog(store, WriterIdentity("driver", "0" * 64, "1" * 64), clock)
    names = [TopicPartition("images", number) for number in range(3)]
    offsets = [
        PartitionOffsets(name, 3, 10, 5 if name.partition == 1 else None, "id") for name in names
    ]
    log.begin(names[2], 10, "id")
    begin_chains(log, offsets, "latest")
    assert [position and position.offset for position in map(log.end, names)] == [10, 5, 10]
    added = PartitionOffsets(TopicPartition("images", 3), 0, 4, None, "id")
    begin_chains(log, [*offsets, added], "latest")
    assert log.end(added.partition) is None


def test_no_chain_is_begun_past_the_end_of_the_topic() -> None:
    log = ScoredLog(MemoryStore(), WriterIdentity("driver", "0" * 64, "1" * 64), ManualClock())
    name = TopicPartition("images", 0)
    with pytest.raises(OffsetRangeError, match=r"new kafka\.group_id"):
        begin_chains(log, [PartitionOffsets(name, 0, 10, 99, "id")], "earliest")
    assert log.end(name) is None


@pytest.mark.parametrize(("start", "offset"), [("earliest", 3), ("latest", 10)])
def test_a_first_start_fixes_all_chains(start: Literal["earliest", "latest"], offset: int) -> None:
    log = ScoredLog(MemoryStore(), WriterIdentity("driver", "0" * 64, "1" * 64), ManualClock())
    names = [TopicPartition("images", number) for number in range(3)]
    begin_chains(log, [PartitionOffsets(name, 3, 10, None, "id") for name in names], start)
    for name in names:
        position = log.end(name)
        assert position is not None
        assert (position.offset, position.topic_id) == (offset, "id")


def test_a_topic_that_appears_later_is_left_to_its_worker_and_begins_at_0() -> None:
    log = ScoredLog(MemoryStore(), WriterIdentity("driver", "0" * 64, "1" * 64), ManualClock())
    known = [TopicPartition(topic, number) for topic in ("m", "n") for number in range(2)]
    log.begin(known[3], 10, "id")  # as far as a start came that was cut short
    offsets = [PartitionOffsets(name, 3, 10, None, "id") for name in known]
    begin_chains(log, offsets, "latest")
    assert [position and position.offset for position in map(log.end, known)] == [10] * 4
    later = PartitionOffsets(TopicPartition("a", 0), 3, 10, None, "id")
    begin_chains(log, [*offsets, later], "latest")
    assert log.end(later.partition) is None


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
