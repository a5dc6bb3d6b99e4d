"""Signed checkpoints: what they say, and what they prove of a log later."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError, ScoredLogError
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.events import Event, append_event, event_path
from nap_stream.scored_log.format import partition_folder, segment_path
from nap_stream.scored_log.proof import checkpoint
from nap_stream.scored_log.proof.checkpoint import (
    EVENTS,
    FOLDER,
    LOG_FILE,
    SignedCheckpoint,
    decode_checkpoint,
    encode_checkpoint,
    last_signed,
    read_checkpoints,
    take_checkpoint,
    write_checkpoint,
)
from nap_stream.scored_log.proof.note import PublicKey, Signer, create_key, read_signer
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.anchored import CLOCK_TOLERANCE_MS, compare_with_checkpoints
from nap_stream.scored_log.verify.compared import digests_at
from nap_stream.scored_log.verify.report import (
    AnchoredChain,
    AnchorReport,
    ChainHead,
    DefectKind,
)
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.attacks import SIGNER
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    local_log,
    merged_segments,
    origin,
    scored,
)
from tests.support.scored_records import RecordLog
from tests.support.waiting import PATIENCE_S

OTHER = TopicPartition("cars", 1)
CARS_FOLDER = partition_folder(CARS)
TAKEN = SignedCheckpoint(
    1_769_860_800_000,
    (
        ChainHead(EVENTS, 0, 12, "c3" * 32),
        ChainHead(CARS, 0, 30, "a1" * 32),
        ChainHead(TopicPartition("of cars", 1), 5, 5, "b2" * 32),
    ),
    (TopicPartition("cars", 7),),
    (ChainHead(TopicPartition("cars", 2), 0, 9, "d4" * 32),),
    log_id="0f" * 16,
    previous="e5" * 32,
)
TEXT = f"""\
nap-stream scored log checkpoint v1
log {"0f" * 16}
time 2026-01-31T12:00:00.000Z
previous {"e5" * 32}
chains 5
chain %2Fevents 0 0 12 {"c3" * 32}
chain cars 0 0 30 {"a1" * 32}
chain of%20cars 1 5 5 {"b2" * 32}
unread cars 7
changed cars 2 0 9 {"d4" * 32}
"""


def _publish(root: Path, count: int, p_value: float = 0.5, made_ms: int = NOON_MS) -> None:
    """Segments of one offset each."""
    log = local_log(root, clock=ManualClock(made_ms))
    position = log.begin(CARS, 0)
    for _ in range(count):
        rows = [scored(origin(position.offset), p_value=p_value)]
        position = log.publish(CARS, position, position.offset + 1, rows).position


def _event(root: Path, kind: str = "alert") -> None:
    append_event(LocalStore(root), Event(time_ms=NOON_MS, kind=kind, by="worker-0", data={}))


def _sign(root: Path, minutes: int = 0, signer: Signer = SIGNER, *, remembers: bool = True) -> str:
    store = LocalStore(root)
    before = last_signed(store, signer.public) if remembers else None
    taken = take_checkpoint(store, NOON_MS + minutes * 60_000, before)
    last = write_checkpoint(store, taken, signer, before)[0].last
    assert last is not None
    return last[0]


def _compare(
    root: Path,
    keys: Sequence[PublicKey] = (SIGNER.public,),
    files: Sequence[Path] = (),
    topic: str | None = None,
    expected_id: str | None = None,
) -> AnchorReport:
    store = LocalStore(root)
    heads = verify(store, clock=ManualClock(), may_be_empty=True, topic=topic).heads
    found = read_checkpoints(store, keys, files)
    return compare_with_checkpoints(store, heads, found, topic, expected_id=expected_id)


def _kinds(report: AnchorReport) -> list[tuple[str, DefectKind]]:
    return [(found.file, found.kind) for found in report.defects]


def test_the_text_is_as_documented() -> None:
    assert encode_checkpoint(TAKEN) == TEXT
    assert decode_checkpoint(TEXT) == TAKEN
    documented = [line.split()[0] for line in (checkpoint.__doc__ or "").splitlines() if line]
    assert {line.split()[0] for line in TEXT.splitlines()} <= set(documented)


@given(
    st.dictionaries(
        st.builds(TopicPartition, st.text(min_size=1), st.integers(0, 2**31 - 1)),
        st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)),
    )
)
def test_any_names_are_told_apart(chains: dict[TopicPartition, tuple[int, int]]) -> None:
    heads = [
        ChainHead(where, start, start + more, "d4" * 32)
        for where, (start, more) in chains.items()
        if where.topic.isascii()
    ]
    taken = SignedCheckpoint(0, tuple(heads), log_id="0f" * 16)
    assert decode_checkpoint(encode_checkpoint(taken)) == taken


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("checkpoint v1", "export v1"),
        ("chains 5", "chains 4"),
        ("chains 5", "chains 05"),
        ("log 0f0f", "log 0F0f"),
        ("log 0f0f", "log "),
        ("previous e5", "previous "),
        ("changed cars 2", "changed cars 0"),
        ("changed cars 2 0 9", "changed cars 2 10 9"),
        (" 0 0 30", " 0 31 30"),
        (" 0 0 30", " 0 -1 30"),
        (" 0 0 30", " 0 0 \uff13"),
        ("chain cars 0", "chain c%61rs 0"),
        ("chain of%20cars 1", "chain cars 0"),
        ("unread cars 7", "unread cars 0"),
        ("unread cars 7", "unheard cars 7"),
        ("unread cars 7\n", "unread cars 7\n\n"),
        ("unread cars 7\n", "unread cars 7 0\n"),
        ("12:00:00.000Z", "12:00:00Z"),
        ("time 2026", "time 20261"),
        ("a1a1", "A1a1"),
        ("a1a1", ""),
    ],
)
def test_what_nap_stream_does_not_write_is_no_checkpoint(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=r"."):
        decode_checkpoint(TEXT.replace(old, new, 1))


def test_all_chains_are_signed_and_hidden_and_two_of_a_moment_have_two_names(
    tmp_path: Path,
) -> None:
    _publish(tmp_path, 2)
    local_log(tmp_path).begin(OTHER, 7)
    _event(tmp_path)
    (tmp_path / "topic=cars/partition=9").mkdir()
    paths = [_sign(tmp_path), _sign(tmp_path)]
    assert paths == [
        f"{FOLDER}/2026-01-01T12-00-00.000Z.note",
        f"{FOLDER}/2026-01-01T12-00-00.001Z.note",
    ]
    head, other = verify(LocalStore(tmp_path), clock=ManualClock()).heads
    found = list(read_checkpoints(LocalStore(tmp_path), [SIGNER.public], []))
    assert found[0].checkpoint is not None
    events, *heads = found[0].checkpoint.heads
    assert heads == [head, other]
    assert (head.end_offset, other.end_offset) == (2, 7)
    assert (events.partition, events.end_offset) == (EVENTS, 1)
    assert verify(LocalStore(tmp_path), clock=ManualClock(), topic="cars").segments == 2


def test_a_chain_that_cannot_be_read_is_named_and_the_others_are_signed(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    log = local_log(tmp_path)
    log.begin(OTHER, 0)
    (tmp_path / segment_path(CARS, 0)).write_bytes(b"PAR1")
    taken = take_checkpoint(LocalStore(tmp_path), NOON_MS)
    assert [head.partition for head in taken.heads] == [OTHER]
    assert taken.unread == (CARS,)


@pytest.mark.parametrize("signed_at", [0, 1, 3])
def test_a_chain_that_went_on_and_was_compacted_is_anchored(tmp_path: Path, signed_at: int) -> None:
    _publish(tmp_path, signed_at)
    _sign(tmp_path)
    for step in ("as it was", "went on", "half compacted", "compacted"):
        store, paths = LocalStore(tmp_path), [segment_path(CARS, base) for base in range(5)]
        if step == "went on":
            _publish_more(tmp_path, 6 - signed_at)
        elif step == "half compacted":
            store.replace(paths[0], merged_segments(store, paths))
        elif step == "compacted":
            store.remove(paths[1:])
        report = _compare(tmp_path)
        end = signed_at if step == "as it was" else 6
        assert report.chains == (AnchoredChain(CARS, end, signed_at, NOON_MS, None),)
        assert report.defects == ()


def _publish_more(root: Path, count: int, p_value: float = 0.5) -> None:
    log = local_log(root)
    position = log.end(CARS)
    assert position is not None
    for _ in range(count):
        rows = [scored(origin(position.offset), p_value=p_value)]
        position = log.publish(CARS, position, position.offset + 1, rows).position


def test_what_was_rewritten_is_bounded_by_the_checkpoints_before_and_after(tmp_path: Path) -> None:
    _publish(tmp_path, 2)
    _sign(tmp_path)
    _publish_more(tmp_path, 2)
    second = _sign(tmp_path, 1)
    _publish_more(tmp_path, 2)
    _sign(tmp_path, 2)
    for base in (2, 3, 4, 5):
        (tmp_path / segment_path(CARS, base)).unlink()
    _publish_more(tmp_path, 4, 0.4)
    later = _sign(tmp_path, 3, remembers=False)
    assert verify(LocalStore(tmp_path), deep=True, clock=ManualClock()).clean
    report = _compare(tmp_path)
    assert report.chains == (AnchoredChain(CARS, 6, 6, NOON_MS + 180_000, second),)
    (defect,) = report.defects
    assert (defect.file, defect.kind) == (CARS_FOLDER, DefectKind.REWRITTEN)
    assert defect.detail.startswith(f"by the checkpoint {second} of 2026-01-01T12:01:00.000Z ")
    assert "what is between 2 and 4 was changed after that" in defect.detail
    (tmp_path / later).unlink()
    assert _compare(tmp_path).chains[0].anchored_offset == 2


def test_an_end_that_was_cut_off_and_a_chain_that_is_gone(tmp_path: Path) -> None:
    _publish(tmp_path, 3)
    local_log(tmp_path).begin(OTHER, 0)
    _sign(tmp_path)
    (tmp_path / segment_path(CARS, 1)).unlink()
    (tmp_path / segment_path(CARS, 2)).unlink()
    shutil.rmtree(tmp_path / partition_folder(OTHER))
    report = _compare(tmp_path)
    assert _kinds(report) == [
        (CARS_FOLDER, DefectKind.TRUNCATED),
        (partition_folder(OTHER), DefectKind.CHAIN_MISSING),
    ]
    assert report.defects[0].detail.endswith("it ends at 3; now it ends at 1")
    shutil.rmtree(tmp_path / "topic=cars")
    assert [kind for _, kind in _kinds(_compare(tmp_path))] == [DefectKind.CHAIN_MISSING] * 2
    assert _compare(tmp_path, topic="dogs").chains == ()


def test_the_chain_of_events_is_anchored_too(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    for _ in range(2):
        _event(tmp_path)
    _sign(tmp_path)
    _event(tmp_path)
    assert _compare(tmp_path).chains[0] == AnchoredChain(EVENTS, 3, 2, NOON_MS, None)
    assert [one.partition for one in _compare(tmp_path, topic="cars").chains] == [EVENTS, CARS]
    kept = tmp_path / "kept"
    kept.mkdir()
    for number in (1, 2):
        shutil.move(tmp_path / event_path(number), kept)
    (defect,) = _compare(tmp_path).defects
    assert (defect.file, defect.kind) == ("_events", DefectKind.TRUNCATED)
    _event(tmp_path, "acknowledged")
    (defect,) = _compare(tmp_path).defects
    assert (defect.file, defect.kind) == ("_events", DefectKind.REWRITTEN)
    shutil.rmtree(tmp_path / "_events")
    assert _kinds(_compare(tmp_path)) == [("_events", DefectKind.CHAIN_MISSING)]


def test_what_claims_to_be_older_than_a_checkpoint_that_lacks_it(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    minutes = CLOCK_TOLERANCE_MS // 60_000
    _sign(tmp_path, minutes)
    local_log(tmp_path).begin(OTHER, 0)
    _publish_more(tmp_path, 1)
    report = _compare(tmp_path)
    assert report.defects == (), "clocks may differ by so much"
    assert report.chains[1] == AnchoredChain(OTHER, 0, None, None, None)
    shutil.rmtree(tmp_path / FOLDER)
    (tmp_path / segment_path(CARS, 1)).unlink()
    shutil.rmtree(tmp_path / partition_folder(OTHER))
    _sign(tmp_path, minutes + 1)
    other = local_log(tmp_path)
    other.publish(OTHER, other.begin(OTHER, 0), 1, [])
    _publish_more(tmp_path, 2)
    assert _kinds(_compare(tmp_path)) == [
        (CARS_FOLDER, DefectKind.BACKDATED),
        (partition_folder(OTHER), DefectKind.BACKDATED),
    ]
    store = LocalStore(tmp_path)
    paths = [segment_path(CARS, base) for base in (0, 1)]
    store.replace(paths[0], merged_segments(store, paths))
    store.remove(paths[1:])
    assert _kinds(_compare(tmp_path))[0] == (CARS_FOLDER, DefectKind.BACKDATED)


def test_a_chain_that_could_not_be_read_then_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    store = LocalStore(tmp_path)
    taken = take_checkpoint(store, NOON_MS + 2 * CLOCK_TOLERANCE_MS)
    write_checkpoint(store, replace(taken, heads=(), unread=(CARS,)), SIGNER)
    assert _compare(tmp_path).defects == ()


def test_a_chain_without_what_was_signed_is_not_signed_again(tmp_path: Path) -> None:
    _publish(tmp_path, 3)
    local_log(tmp_path).begin(OTHER, 0)
    _event(tmp_path)
    _sign(tmp_path)
    store = LocalStore(tmp_path)
    signed = last_signed(store, SIGNER.public).heads[CARS]
    _publish_more(tmp_path, 1)
    assert take_checkpoint(store, NOON_MS, last_signed(store, SIGNER.public)).changed == ()
    for base in (2, 3):
        (tmp_path / segment_path(CARS, base)).unlink()
    _publish_more(tmp_path, 2, 0.4)
    shutil.rmtree(tmp_path / partition_folder(OTHER))
    (tmp_path / event_path(0)).unlink()
    _event(tmp_path, "acknowledged")
    second = _sign(tmp_path, 1)
    _sign(tmp_path, 2)
    taken = take_checkpoint(store, NOON_MS, last_signed(store, SIGNER.public))
    assert taken.heads == ()
    assert {head.partition for head in taken.changed} == {EVENTS, CARS, OTHER}
    assert signed in taken.changed
    found = [each for each in _compare(tmp_path).defects if f"{second} of" in each.detail]
    assert [each.kind for each in found] == [DefectKind.REWRITTEN] * 3
    assert f"until 3 with the digest {signed.sha256}, which is gone" in found[1].detail


def test_an_end_is_remembered_over_a_checkpoint_that_could_not_read_it(tmp_path: Path) -> None:
    _publish(tmp_path, 2)
    local_log(tmp_path).begin(OTHER, 0)
    _sign(tmp_path)
    last = tmp_path / segment_path(CARS, 1)
    last.unlink()
    last.mkdir()
    _sign(tmp_path, 1)
    store = LocalStore(tmp_path)
    assert [each.partition for each in take_checkpoint(store, NOON_MS).heads] == [OTHER]
    report = _compare(tmp_path)
    assert report.unread == (CARS,)
    last.rmdir()
    taken = take_checkpoint(store, NOON_MS, last_signed(store, SIGNER.public))
    assert [each.partition for each in taken.changed] == [CARS]


def test_a_checkpoint_in_the_middle_that_is_gone_shows(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    _, middle, last = (_sign(tmp_path, minutes) for minutes in range(3))
    assert _compare(tmp_path).defects == ()
    kept = tmp_path / "kept"
    shutil.move(tmp_path / middle, kept)
    (defect,) = _compare(tmp_path).defects
    assert (defect.file, defect.kind) == (last, DefectKind.CHECKPOINT)
    assert "it names the checkpoint before it" in defect.detail
    assert _compare(tmp_path, files=[kept]).defects == ()


def test_which_log_it_is(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for root, count in ((own, 2), (other, 3)):
        _publish(root, count)
        _sign(root)
    known = _compare(own).log_id
    assert known != _compare(other).log_id
    kept = tmp_path / "kept.notes"
    kept.write_bytes(
        b"".join(next((root / FOLDER).iterdir()).read_bytes() for root in (own, other))
    )
    report = _compare(own, files=[kept])
    assert (report.checkpoints, report.defects) == (2, ())
    assert [source for source, _ in report.unknown] == [f"{kept}, note 2"]
    # One log in the place of the other, with its checkpoints: who knows the id sees it.
    assert _compare(other, files=[kept]).defects == ()
    with pytest.raises(ConfigError, match=f"and this is {known}"):
        _compare(other, expected_id=known)
    assert (LOG_FILE, DefectKind.CHECKPOINT) in _kinds(
        _compare(other, files=[kept], expected_id=known)
    )
    shutil.copy(next((own / FOLDER).iterdir()), kept)
    assert _kinds(_compare(other, files=[kept])) == [(str(kept), DefectKind.CHECKPOINT)]
    # Another id lets what was signed before not count: that is a defect of each.
    note = f"{FOLDER}/{next((own / FOLDER).iterdir()).name}"
    shutil.copy(other / LOG_FILE, own / LOG_FILE)
    with pytest.raises(ScoredLogError, match=f"and the log {known} was signed here"):
        _sign(own, 1)
    _sign(own, 1, remembers=False)
    assert (note, DefectKind.CHECKPOINT) in _kinds(_compare(own))
    (own / LOG_FILE).unlink()
    with pytest.raises(ScoredLogError, match="this is the log None"):
        _sign(own, 2)
    assert (LOG_FILE, DefectKind.CHECKPOINT) in _kinds(_compare(own))
    (own / LOG_FILE).write_text("{}")
    assert (LOG_FILE, DefectKind.CHECKPOINT) in _kinds(_compare(own))


def test_a_clock_that_was_wrong_once_makes_no_later_segment_backdated(tmp_path: Path) -> None:
    years = 10 * 365 * 24 * 60
    _publish(tmp_path, 1)
    _sign(tmp_path, years)
    _publish_more(tmp_path, 1)
    local_log(tmp_path).begin(OTHER, 0)
    _sign(tmp_path, 1)
    log = local_log(tmp_path)
    position = log.end(OTHER)
    assert position is not None
    log.publish(OTHER, position, 1, [])
    _publish_more(tmp_path, 1)
    report = _compare(tmp_path)
    assert report.defects == ()
    assert report.chains[0] == AnchoredChain(CARS, 3, 2, NOON_MS + 60_000, None)


def test_an_event_that_claims_to_be_older_than_a_checkpoint_that_lacks_it(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    minutes = CLOCK_TOLERANCE_MS // 60_000
    _event(tmp_path)
    _sign(tmp_path, minutes)
    _event(tmp_path)
    assert _compare(tmp_path).defects == ()
    (tmp_path / event_path(1)).unlink()
    _sign(tmp_path, minutes + 1)
    _event(tmp_path, "acknowledged")
    (defect,) = _compare(tmp_path, topic="cars").defects
    assert (defect.file, defect.kind) == ("_events", DefectKind.BACKDATED)
    assert defect.detail.startswith(f"{event_path(1)} says that it was made at ")


def test_one_file_that_cannot_be_read_is_a_defect_and_the_others_are_read(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    _sign(tmp_path)
    for name in ("0.note", "9.note"):
        (tmp_path / FOLDER / name).mkdir()
    (tmp_path / FOLDER / "5.tsr").write_bytes(b"")
    report = _compare(tmp_path)
    assert report.checkpoints == 1
    assert _kinds(report) == [
        (f"{FOLDER}/{name}", DefectKind.CHECKPOINT) for name in ("0.note", "9.note", "5.tsr")
    ]
    assert (
        report.defects[2].detail == "a time stamp, and its checkpoint is not there: it was removed"
    )
    _event(tmp_path)
    _sign(tmp_path, 1)
    (tmp_path / event_path(0)).unlink()
    (tmp_path / event_path(0)).mkdir()
    assert ("_events", DefectKind.REWRITTEN) in _kinds(_compare_alone(tmp_path))


def _compare_alone(root: Path) -> AnchorReport:
    """Without `verify`, which may not read such events."""
    store = LocalStore(root)
    return compare_with_checkpoints(store, (), read_checkpoints(store, [SIGNER.public], []))


def test_keys_are_rotated_and_unknown_ones_are_told(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    create_key(tmp_path / "key", "new")
    new = read_signer(tmp_path / "key", "--key")
    _sign(tmp_path)
    _publish_more(tmp_path, 1)
    path = _sign(tmp_path, 1, new)
    report = _compare(tmp_path, [SIGNER.public, new.public])
    assert (report.checkpoints, report.chains[0].anchored_offset) == (2, 2)
    assert set(report.signers) == {SIGNER.public.label, new.public.label}
    report = _compare(tmp_path)
    assert (report.checkpoints, report.chains[0].anchored_offset) == (1, 1)
    assert report.unknown == ((path, f"signed by {new.public.label}, which no given key is"),)
    assert report.defects == ()


def test_a_log_without_a_valid_checkpoint_is_an_error(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    with pytest.raises(ConfigError, match="no checkpoint is signed by a given key: there is none"):
        _compare(tmp_path)
    path = tmp_path / _sign(tmp_path)
    create_key(tmp_path / "key", "new")
    with pytest.raises(ConfigError, match=r"signed by PeterNeumann\+c74f20a3, which no given key"):
        _compare(tmp_path, [read_signer(tmp_path / "key", "--key").public])
    note = path.read_bytes()
    path.write_bytes(note.replace(b" 0 0 1 ", b" 0 0 2 "))
    with pytest.raises(ConfigError, match=r"signature of PeterNeumann\+c74f20a3 is not of this"):
        _compare(tmp_path)
    kept = tmp_path / "kept.note"
    kept.write_bytes(note)
    report = _compare(tmp_path, files=[kept])
    assert report.chains == (AnchoredChain(CARS, 1, 1, NOON_MS, None),)
    assert _kinds(report) == [(f"{FOLDER}/{path.name}", DefectKind.CHECKPOINT)]
    with pytest.raises(ConfigError, match="no such file"):
        _compare(tmp_path, files=[tmp_path / "none"])


@pytest.mark.parametrize("between", [b"", b"\n"])
def test_a_file_of_all_messages_of_a_topic(tmp_path: Path, between: bytes) -> None:
    store, notes = LocalStore(tmp_path), []
    for count in (1, 2, 3):
        _publish_more(tmp_path, 1) if count > 1 else _publish(tmp_path, 1)
        taken = take_checkpoint(store, NOON_MS + count)
        notes.append(write_checkpoint(store, taken, SIGNER)[1] + between)
    kept = tmp_path / "kept"
    kept.write_bytes(notes[0])
    report = _compare(tmp_path, files=[kept])
    assert (report.checkpoints, report.defects) == (4, ())
    kept.write_bytes(b"no notes")
    assert _kinds(_compare(tmp_path, files=[kept])) == [(str(kept), DefectKind.CHECKPOINT)]
    create_key(tmp_path / "key", "new")
    kept.write_bytes(read_signer(tmp_path / "key", "--key").sign("nap-stream\n"))
    (defect,) = _compare(tmp_path, files=[kept]).defects
    assert "no checkpoint in it counts, and so it proves nothing: signed by new" in defect.detail
    shutil.rmtree(tmp_path / FOLDER)
    kept.write_bytes(b"".join(notes))
    report = _compare(tmp_path, files=[kept])
    assert (report.checkpoints, report.defects) == (3, ())
    assert report.chains == (AnchoredChain(CARS, 3, 3, NOON_MS + 3, None),)
    kept.write_bytes(b"".join([notes[0], notes[1].replace(b" 0 0 2 ", b" 0 0 3 "), notes[2]]))
    report = _compare(tmp_path, files=[kept])
    assert report.checkpoints == 2
    assert _kinds(report) == [(f"{kept}, note 2", DefectKind.CHECKPOINT)]


def test_what_is_signed_for_another_purpose_is_no_checkpoint(tmp_path: Path) -> None:
    _publish(tmp_path, 1)
    store = LocalStore(tmp_path)
    _sign(tmp_path)
    store.create(f"{FOLDER}/x.note", SIGNER.sign("nap-stream export v1\n"))
    assert _kinds(_compare(tmp_path)) == [(f"{FOLDER}/x.note", DefectKind.CHECKPOINT)]


class _InPairs(LocalStore):
    """Opens files of a kind two at a time: what reads them one by one waits in vain."""

    def __init__(self, root: Path, suffix: str) -> None:
        super().__init__(root)
        self._suffix, self._pair = suffix, threading.Barrier(2, timeout=PATIENCE_S)

    def open(self, path: str) -> BinaryIO | None:
        if path.endswith(self._suffix):
            self._pair.wait()
        return super().open(path)


def test_notes_and_footers_are_not_read_one_by_one(tmp_path: Path) -> None:
    _publish(tmp_path, 2)
    for minutes in range(2):
        _sign(tmp_path, minutes)
    assert len(list(read_checkpoints(_InPairs(tmp_path, ".note"), [SIGNER.public], []))) == 2
    ends = [(1, "a1" * 32), (2, "b2" * 32)]
    found = digests_at(_InPairs(tmp_path, ".parquet"), CARS, ends)
    assert [len(found[end]) for end in (1, 2)] == [1, 1]


def test_checkpoints_in_an_object_store(s3_root: str) -> None:
    store = store_at(s3_root)
    log = RecordLog(store, WriterIdentity("worker-0", MODEL, CALIBRATION), ManualClock(NOON_MS))
    position = log.publish(CARS, log.begin(CARS, 0), 3, [scored(origin(0))]).position
    signed, _ = write_checkpoint(store, take_checkpoint(store, NOON_MS), SIGNER)
    log.publish(CARS, position, 4, [])
    report = verify(store, deep=True, clock=ManualClock())
    assert report.clean
    found = read_checkpoints(store, [SIGNER.public], [])
    anchored = compare_with_checkpoints(store, report.heads, found)
    assert anchored.chains == (AnchoredChain(CARS, 4, 3, NOON_MS, None),)
    assert anchored.defects == ()
    assert signed.last is not None
    store.create(f"{signed.last[0]}/x.parquet", b"")
    (defect,) = verify(store, clock=ManualClock()).defects
    assert (defect.file, defect.kind) == (FOLDER, DefectKind.STRAY_FILE)
    assert "holds 1 Parquet files" in defect.detail
