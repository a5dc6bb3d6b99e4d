"""What the next prune finishes, and what it does not although events and seals tell of it."""

import dataclasses
import hashlib
from typing import Any

import pytest

from nap_stream.clock import ManualClock
from nap_stream.scored_log.events import Event, EventKind, append_event, event_path
from nap_stream.scored_log.footer import segment_sha256
from nap_stream.scored_log.format import seal_path
from nap_stream.scored_log.history import entries
from nap_stream.scored_log.proof.note import Signer
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.seals import (
    encode_seal,
    read_seal,
    span_of,
)
from nap_stream.scored_log.stores import SegmentStore
from nap_stream.scored_log.verify.report import DefectKind, VerifyReport
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.attacks import SIGNER
from tests.scored_log.builders import (
    CARS,
    NOON_MS,
)
from tests.scored_log.failing_store import DyingStore, Killed
from tests.scored_log.test_prune import DAY_MS, DAYS, LATER_MS, prune_days, write_days
from tests.support.log_files import read_footer
from tests.support.memory_store import MemoryStore


def _verify(store: SegmentStore) -> VerifyReport:
    return verify(store, deep=True, clock=ManualClock())


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    write_days(store)
    return store


def _forge(store: SegmentStore, end: int, pruned_ms: int = LATER_MS, **said: Any) -> str:
    """What who can write to the log can make: a seal until an offset, and an event that tells."""
    parts = [part for path in segments(store, CARS) for part in read_footer(store, path).parts]
    own = [part for part in parts if part.end_offset <= end]
    scored_rows = sum(part.scored_rows for part in own)
    rows = {"corrupt": sum(part.rows for part in own) - scored_rows, "ok": scored_rows}
    asked: dict[str, Any] = {"before_ms": pruned_ms, "by": "E", "reason": "x", **said}
    span = span_of(*(own, rows, 0), **asked, pruned_ms=pruned_ms, program_version="1")
    content = encode_seal(span, own, None)
    sha256 = hashlib.sha256(content).hexdigest()
    of = {"topic": "cars", "partition": 0, "start_offset": 0}
    data: dict[str, Any] = {"seals": [{"file": span.path, "seal_sha256": sha256, **of}]}
    data |= {"before_ms": pruned_ms, "reason": "x", "signer": None}
    append_event(
        store, Event(time_ms=pruned_ms, kind=EventKind.PRUNING, by="E", topic="cars", data=data)
    )
    assert store.create(span.path, content)
    return span.path


@pytest.mark.parametrize(
    ("end", "pruned_ms", "signer", "problem"),
    [
        (24, LATER_MS, None, "it covers the newest file of the chain"),
        (20, NOON_MS + 5 * DAY_MS, None, "published within a day"),
        (20, LATER_MS + 1_000 * DAY_MS, SIGNER, "it is not signed"),
    ],
)
def test_a_forged_seal_that_an_event_tells_of_has_nothing_removed(
    end: int, pruned_ms: int, signer: Signer | None, problem: str, store: MemoryStore
) -> None:
    path = _forge(store, end, pruned_ms)
    done = prune_days(store, 50, signer=signer)
    (refused,) = done.refusals
    assert (path in refused.reason, problem in refused.reason) == (True, True)
    assert not done.clean
    assert len(segments(store, CARS)) == DAYS


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"by": "A"}, "names another time, name or reason"),
        ({"reason": "y"}, "names another time, name or reason"),
        ({"before_ms": 0}, "names another time, name or reason"),
    ],
)
def test_a_seal_that_is_not_what_its_event_asks_for_has_nothing_removed(
    said: dict[str, Any], problem: str, store: MemoryStore
) -> None:
    _forge(store, 20, **said)
    assert problem in prune_days(store, 50).refusals[0].reason
    assert len(segments(store, CARS)) == DAYS


def test_an_unsigned_seal_removes_nothing_that_this_run_is_not_asked_for(
    store: MemoryStore,
) -> None:
    path = _forge(store, 20)
    done = prune_days(store, 4)
    assert (done.clean, done.finished, len(segments(store, CARS))) == (False, 0, DAYS)
    (refused,) = done.refusals
    assert path in refused.reason
    assert "give --before 2026-01-05T12:00:00.001Z" in refused.reason
    done = prune_days(store, 5)
    assert (done.clean, done.finished, done.finished_rows) == (True, 5, 16)


def test_an_unsigned_seal_leaves_the_window_of_a_monitor(store: MemoryStore) -> None:
    append_event(
        store,
        Event(
            time_ms=1,
            kind=EventKind.RUN_STARTED,
            by="m",
            topic="cars",
            data={"window_records": 1000},
        ),
    )
    path = _forge(store, 20)
    (refused,) = prune_days(store, 50).refusals
    assert (path in refused.reason, "the newest 1,000 rows" in refused.reason) == (True, True)
    assert len(segments(store, CARS)) == DAYS


def test_what_an_interrupted_prune_has_left_is_read_before_it_is_removed(
    store: MemoryStore,
) -> None:
    _forge(store, 20)
    path = segments(store, CARS)[1]
    content = bytearray(store.read(path) or b"")
    content[8] ^= 1
    store.remove([path])
    assert store.create(path, bytes(content))
    assert not prune_days(store, 50).clean
    assert len(segments(store, CARS)) == DAYS


def test_what_no_key_has_signed_is_finished_and_named(store: MemoryStore) -> None:
    path = _forge(store, 4)
    done = prune_days(store, 50)
    assert (done.clean, done.finished > 0, [span.path for span in done.unsigned]) == (
        True,
        True,
        [path],
    )


def test_a_seal_that_is_signed_is_not_finished_without_its_key(store: MemoryStore) -> None:
    with pytest.raises(Killed):
        prune_days(DyingStore(store, 5), signer=SIGNER)
    left = segments(store, CARS)
    done = prune_days(store, break_lock=True)
    assert f"signed it, {SIGNER.public.label}, and none is given" in done.refusals[0].reason
    assert segments(store, CARS) == left
    assert prune_days(store, signer=SIGNER).unsigned == ()


def test_a_forged_seal_dated_later_does_not_make_new_files_old(store: MemoryStore) -> None:
    _forge(store, 20, LATER_MS + DAY_MS)
    done = prune_days(store, 50, now_ms=NOON_MS + 5 * DAY_MS)
    assert "published within a day" in done.refusals[0].reason


def test_a_seal_of_another_past_has_no_file_removed(store: MemoryStore) -> None:
    other = MemoryStore()
    write_days(other, days=2)
    path = _forge(other, 4)
    seal = read_seal(other, path)
    parts = [dataclasses.replace(seal.parts[0], writer_id="nobody", rows_sha256="ab" * 32)]
    span = dataclasses.replace(seal.span, sha256=segment_sha256(parts[0]))
    content = encode_seal(span, parts, None)
    of = {"topic": "cars", "partition": 0, "start_offset": 0}
    named = {"file": path, "seal_sha256": hashlib.sha256(content).hexdigest(), **of}
    append_event(store, Event(time_ms=1, kind=EventKind.PRUNING, by="E", data={"seals": [named]}))
    store.create(path, content)
    assert "does not end where what stands behind it begins" in prune_days(store).refusals[0].reason
    assert len(segments(store, CARS)) == DAYS


def test_who_signs_finishes_what_the_same_key_has_signed(store: MemoryStore) -> None:
    with pytest.raises(Killed):
        prune_days(DyingStore(store, 5), signer=SIGNER)
    done = prune_days(store, signer=SIGNER, break_lock=True)
    assert (done.finished > 0, done.refusals) == (True, ())
    assert _verify(store).clean


def test_an_event_of_the_same_path_later_does_not_hold_a_prune_up(store: MemoryStore) -> None:
    with pytest.raises(Killed):
        prune_days(DyingStore(store, 5))
    of = {"topic": "cars", "partition": 0, "start_offset": 0}
    named = {"file": seal_path(CARS, 0), "seal_sha256": "ab" * 32, **of}
    append_event(store, Event(time_ms=1, kind=EventKind.PRUNING, by="E", data={"seals": [named]}))
    assert prune_days(store, break_lock=True).refusals == ()
    assert _verify(store).clean


@pytest.mark.parametrize(
    "changed",
    [
        {"file": "\0"},
        {"file": "../secret"},
        {"file": 7},
        {"topic": ["cars"]},
        {"topic": ".."},
        {"partition": "0"},
        {"seal_sha256": None},
    ],
)
@pytest.mark.parametrize("kind", [EventKind.PRUNING, EventKind.PRUNED])
def test_an_event_that_names_no_seal_is_a_defect_and_stops_nobody(
    changed: dict[str, object], kind: EventKind, store: MemoryStore
) -> None:
    of = {"topic": "cars", "partition": 0, "start_offset": 0}
    named = {"file": seal_path(CARS, 0), "seal_sha256": "ab" * 32, **of, **changed}
    event = append_event(store, Event(time_ms=1, kind=kind, by="E", data={"seals": [named]}))
    (defect,) = verify(store, clock=ManualClock()).defects
    assert (defect.file, defect.kind) == (event_path(event.number), DefectKind.SEAL)
    assert len(list(entries([event]))) == 1
    assert prune_days(store).refusals == ()
