import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nap_stream.alert.event import AlertEvent
from nap_stream.monitor.alerts import (
    Checkpoint,
    CheckpointStore,
    decode_checkpoint,
    encode_checkpoint,
)
from nap_stream.scored_log.read import partitions
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LEFTOVER_AGE_MS, LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, NOON_MS, chain, origin, scored
from tests.support.memory_store import MemoryStore

EVENT = AlertEvent("lab", {"id": "abc", "type": "io.nap-stream.gap", "data": {"reason": "Zürich"}})
KEPT = Checkpoint(b"\x00state\xff", (EVENT,))


@given(st.binary(max_size=50), st.lists(st.text(max_size=5), max_size=3))
def test_what_was_written_is_read(state: bytes, names: list[str]) -> None:
    pending = tuple(AlertEvent(name, {"id": name, "type": "t"}) for name in names)
    for checkpoint in (Checkpoint(state, pending), Checkpoint(state, pending[1:], pending[:2])):
        assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


@given(st.integers(0, len(encode_checkpoint(KEPT)) - 1), st.integers(1, 255))
def test_no_byte_may_change(position: int, change: int) -> None:
    content = bytearray(encode_checkpoint(KEPT))
    content[position] ^= change
    with pytest.raises(ValueError, match=r"checkpoint|damaged"):
        decode_checkpoint(bytes(content))


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_no_byte_may_be_missing(length: int) -> None:
    with pytest.raises(ValueError, match=r"checkpoint|damaged"):
        decode_checkpoint(encode_checkpoint(KEPT)[:length])


@pytest.mark.parametrize("event", [{}, {"id": "1"}, [], "text", None])
def test_pending_events_must_be_such(event: object) -> None:
    content = encode_checkpoint(Checkpoint(b"", (AlertEvent("lab", event),)))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="not a checkpoint"):
        decode_checkpoint(content)


def test_there_is_one_a_monitor_and_topic(tmp_path: Path) -> None:
    names = ["lab", "lab 2", "..", ".", "a/b", "a%2Fb", "Zürich", "x" * 200, "é" * 200, "=", "-"]
    store = LocalStore(tmp_path)
    stores = [
        CheckpointStore(store, *pair) for pair in itertools.product(names, ["cars", "t" * 249])
    ]
    assert len({each.path for each in stores}) == len(stores)
    for number, each in enumerate(stores):
        assert each.read() is None
        each.write(Checkpoint(str(number).encode()))
    for number, each in enumerate(stores):
        assert each.read() == Checkpoint(str(number).encode())
    assert [child.name for child in tmp_path.iterdir()] == ["_monitors"]
    assert all(
        len(path.parts) == len(tmp_path.parts) + 3 for path in tmp_path.rglob("*.checkpoint")
    )


def test_what_cannot_be_read_counts_as_none_and_is_told() -> None:
    store = MemoryStore()
    checkpoints = CheckpointStore(store, "lab", "cars")
    checkpoints.write(KEPT)
    store.replace(checkpoints.path, b"something else")
    with capture_logs() as events:
        assert checkpoints.read() is None
    assert [event["event"] for event in events] == ["checkpoint_unreadable"]
    assert events[0]["file"] == "memory/_monitors/lab/cars.checkpoint"


def test_the_log_does_not_mind(tmp_path: Path) -> None:
    chain(tmp_path, [(1, [scored(origin(0))])])
    store = LocalStore(tmp_path)
    CheckpointStore(store, "lab", CARS.topic).write(KEPT)
    assert verify(store, deep=True).clean
    assert partitions(store) == (CARS,)


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(LocalStore(tmp_path), "lab", "cars")
    checkpoints.remove_leftovers(NOON_MS)
    checkpoints.write(KEPT)
    folder = tmp_path / "_monitors/lab"
    old, new = folder / f".{'a' * 32}.tmp", folder / f".{'b' * 32}.tmp"
    for file, age_ms in ((old, LEFTOVER_AGE_MS + 1), (new, LEFTOVER_AGE_MS - 1)):
        file.write_bytes(b"half")
        os.utime(file, ns=(0, (NOON_MS - age_ms) * 1_000_000))
    checkpoints.remove_leftovers(NOON_MS)
    assert sorted(child.name for child in folder.iterdir()) == [new.name, "cars.checkpoint"]
    assert checkpoints.read() == KEPT


def test_an_object_store_will_do(s3_root: str) -> None:
    store = store_at(s3_root)
    first, second = (CheckpointStore(store, "lab", "cars") for _ in range(2))
    assert first.read() is None
    first.write(KEPT)
    second.write(Checkpoint(b"newer"))
    assert first.read() == Checkpoint(b"newer")
    first.remove_leftovers(NOON_MS)
    assert partitions(store) == ()
