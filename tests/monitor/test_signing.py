"""Signed checkpoints beside a monitor at work."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nap_stream.clock import Clock, ManualClock
from nap_stream.metrics import Metrics
from nap_stream.monitor import signing
from nap_stream.monitor.alerts import CheckpointStore
from nap_stream.monitor.coordinator import Coordinator
from nap_stream.monitor.journal import Journal
from nap_stream.monitor.signing import LogSigner
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import event_path, event_sha256
from nap_stream.scored_log.format import genesis_path, partition_folder
from nap_stream.scored_log.proof.checkpoint import FOLDER, SignedCheckpoint, read_checkpoints
from nap_stream.scored_log.proof.note import PublicKey, create_key
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.anchored import compare_with_checkpoints
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.settings.schema import KafkaSettings
from tests.scored_log.builders import CARS, memory_log
from tests.support.alert_sinks import FlakySink
from tests.support.memory_store import MemoryStore
from tests.support.summaries import FACTS, settings
from tests.support.summary_log import SummaryList
from tests.support.topics import new_settings, read_all
from tests.support.waiting import PATIENCE_S, wait_until

NOW_MS = 1_767_268_800_000
EVERY_S = 600.0
NO_BROKER = KafkaSettings(bootstrap_servers=("127.0.0.1:1",), topic="t", connect_timeout_s=0.1)


class SlowStore(MemoryStore):
    """Holds up what creates checkpoints until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def create(self, path: str, content: bytes) -> bool:
        if path.startswith(FOLDER):
            self.asked.set()
            assert self.go.wait(PATIENCE_S)
        return super().create(path, content)


@pytest.fixture
def key(tmp_path: Path) -> PublicKey:
    return create_key(tmp_path / "key", "line-3")


@pytest.fixture
def store() -> MemoryStore:
    found = MemoryStore()
    memory_log(found).begin(CARS, 5)
    return found


def _signer(
    folder: Path,
    store: SegmentStore,
    clock: Clock,
    kafka: KafkaSettings = NO_BROKER,
    metrics: Metrics | None = None,
    **more: Any,
) -> LogSigner:
    signed = {"key_file": folder / "key", "every_s": EVERY_S, **more}
    made = settings(kafka=kafka.model_dump(), log={"checkpoints": signed})
    return LogSigner(store, made, metrics or Metrics("1"), clock)


def _written(store: SegmentStore, *keys: PublicKey) -> list[SignedCheckpoint]:
    found = read_checkpoints(store, keys, [])
    return [each.checkpoint for each in found if each.checkpoint is not None]


def _settled(signer: LogSigner) -> None:
    signer.finish(PATIENCE_S)


def test_one_at_once_then_on_schedule_then_one_at_the_end(
    tmp_path: Path, store: MemoryStore, key: PublicKey
) -> None:
    clock = ManualClock(NOW_MS)
    signer = _signer(tmp_path, store, clock)
    for advance_s in (0.0, EVERY_S - 1, 1.0, 0.0):
        clock.advance(advance_s)
        signer.tick()
        _settled(signer)
    signer.begin()
    _settled(signer)
    times = [found.time_ms - NOW_MS for found in _written(store, key)]
    assert times == [0, 600_000, 600_001]
    assert signer.failure is None
    assert [head.end_offset for head in _written(store, key)[0].heads] == [5]


def test_without_a_key_file_nothing_is_signed(store: MemoryStore) -> None:
    signer = LogSigner(store, settings(), Metrics("1"), ManualClock())
    signer.tick()
    signer.begin()
    _settled(signer)
    assert store.names(FOLDER) == []


def test_nothing_waits_for_a_slow_store_and_one_is_made_at_a_time(
    tmp_path: Path, key: PublicKey
) -> None:
    store, clock = SlowStore(), ManualClock(NOW_MS)
    memory_log(store).begin(CARS, 0)
    signer = _signer(tmp_path, store, clock)
    signer.tick()
    assert store.asked.wait(PATIENCE_S)
    clock.advance(2 * EVERY_S)
    signer.tick()
    assert signer.failure == "the one before is still being made"
    signer.begin()
    assert store.names(FOLDER) == []
    store.go.set()
    _settled(signer)
    assert len(_written(store, key)) == 2
    assert signer.failure is None


def test_a_key_that_was_replaced_signs_the_next(
    tmp_path: Path, store: MemoryStore, key: PublicKey
) -> None:
    clock, metrics = ManualClock(NOW_MS), Metrics("1")
    signer = _signer(tmp_path, store, clock, metrics=metrics)
    signer.tick()
    _settled(signer)
    (tmp_path / "key").unlink()
    with capture_logs() as logs:
        signer.begin()
        _settled(signer)
    assert signer.failure is not None
    assert signer.failure.startswith("log.checkpoints.key_file: the key cannot be read")
    assert [log["event"] for log in logs] == ["signed_checkpoint_failed"]
    failing = partial(metrics.registry.get_sample_value, "nap_stream_signed_checkpoint_failing")
    assert failing() == 1
    later = create_key(tmp_path / "key", "line-3")
    clock.advance(EVERY_S)
    signer.tick()
    _settled(signer)
    assert signer.failure is None
    assert failing() == 0
    signers = [found.signers for found in read_checkpoints(store, [key, later], [])]
    assert signers == [(key.label,), (later.label,)]


def test_a_chain_that_cannot_be_read_is_a_failure_that_is_told(
    tmp_path: Path, store: MemoryStore, key: PublicKey
) -> None:
    other, clock = TopicPartition("cars", 1), ManualClock(NOW_MS)
    store.create(genesis_path(other), b"{}")
    signer = _signer(tmp_path, store, clock)
    signer.tick()
    _settled(signer)
    assert signer.failure == "cars/1 cannot be read, and is not in it"
    (found,) = _written(store, key)
    assert (len(found.heads), found.unread) == (1, (other,))


def test_what_was_signed_is_remembered_and_a_chain_without_it_is_told(
    tmp_path: Path, store: MemoryStore, key: PublicKey
) -> None:
    clock = ManualClock(NOW_MS)
    signer = _signer(tmp_path, store, clock)
    signer.tick()
    _settled(signer)
    (first,) = store.names(FOLDER)
    store.remove([genesis_path(CARS), f"{FOLDER}/{first}"])
    memory_log(store).begin(CARS, 6)
    for each in (signer, _signer(tmp_path, store, clock)):
        each.begin()
        _settled(each)
        assert each.failure is not None
        assert "cars/0: it was signed until 5 with the digest " in each.failure
    found = _written(store, key)
    assert [(one.heads, [head.end_offset for head in one.changed]) for one in found] == [
        ((), [5]),
        ((), [5]),
    ]
    assert signer.failure is not None
    assert signer.failure.startswith(f"{FOLDER}/{first} is gone or another one")
    defects = compare_with_checkpoints(store, (), read_checkpoints(store, [key], [])).defects
    assert [(each.file, each.kind) for each in defects] == [
        (partition_folder(CARS), DefectKind.REWRITTEN),
        (f"{FOLDER}/{store.names(FOLDER)[0]}", DefectKind.CHECKPOINT),
    ]


def test_the_last_one_does_not_wait_for_one_that_is_being_sent(
    tmp_path: Path, store: MemoryStore, key: PublicKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = threading.Event(), threading.Event()

    def send(*_: object) -> None:
        asked.set()
        assert go.wait(PATIENCE_S)

    monkeypatch.setattr(signing, "send_once", send)
    signer = _signer(tmp_path, store, ManualClock(NOW_MS), topic="copies")
    signer.tick()
    assert asked.wait(PATIENCE_S)
    signer.begin()
    wait_until(lambda: len(_written(store, key)) == 2, "the last checkpoint")
    signer.finish(0.0)
    assert signer.failure == "it was not done when the run ended"
    go.set()
    _settled(signer)


@pytest.mark.embedded
@pytest.mark.usefixtures("key")
def test_a_copy_goes_to_the_topic(tmp_path: Path, store: MemoryStore, embedded: str) -> None:
    kafka, clock = new_settings(embedded), ManualClock(NOW_MS)
    read = kafka.model_copy(update={"topic": "images"})
    signer = _signer(tmp_path, store, clock, read, topic=kafka.topic)
    signer.tick()
    _settled(signer)
    assert signer.failure is None
    (record,) = read_all(kafka, kafka.topic, 1)
    (name,) = store.names(FOLDER)
    assert record.value == store.read(f"{FOLDER}/{name}")


def test_a_broker_that_is_away_is_told_and_the_log_has_its_checkpoint(
    tmp_path: Path, store: MemoryStore, key: PublicKey
) -> None:
    clock, sink = ManualClock(NOW_MS), FlakySink()
    signed = {"key_file": tmp_path / "key", "topic": "copies"}
    made = settings(kafka=NO_BROKER.model_dump(), log={"checkpoints": signed})
    coordinator = Coordinator(
        made,
        FACTS,
        [sink],
        summaries=SummaryList(),
        checkpoints=CheckpointStore(store, "ood-fraction", "images"),
        journal=Journal(store, made, clock),
        clock=clock,
    )
    coordinator.start()
    try:
        coordinator.tick()
        wait_until(lambda: coordinator.status().signing_failure is not None, "the failure")
        (told,) = [r for r in coordinator.status().degraded() if "not signed" in r]
        assert "no broker answered" in told
        assert coordinator.health() == ("0 of 1 workers reported in the last 30 s",)
        read = coordinator.metrics.registry.get_sample_value
        assert read("nap_stream_signed_checkpoint_failures_total") == 1
        assert read("nap_stream_last_signed_checkpoint_timestamp_seconds") == NOW_MS / 1000
        coordinator.stopped("asked to")
        # It waits for some seconds alone, and this machine may be slow.
        wait_until(lambda: len(_written(store, key)) > 1, "the last checkpoint")
    finally:
        coordinator.close()
    first, last = _written(store, key)
    assert (first.time_ms, last.time_ms) == (NOW_MS, NOW_MS + 1)
    events = last.heads[0]
    assert events.sha256 == event_sha256(store, events.end_offset - 1)
    assert b"run-stopped" in (store.read(event_path(events.end_offset - 1)) or b"")
