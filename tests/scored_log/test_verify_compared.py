"""Chains beside what a broker has, and beside the ends that an earlier report has kept."""

import json
import shutil
from pathlib import Path

import pytest

from nap_stream.errors import ConfigError
from nap_stream.pipeline.commits import _COMMITTED
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.events import Event, append_event, event_path
from nap_stream.scored_log.format import genesis_path, partition_folder, segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.compared import compare_with_broker, compare_with_kept
from nap_stream.scored_log.verify.report import (
    BrokerComparison,
    BrokerReport,
    ChainHead,
    Circumstances,
    DeclaredGap,
    Defect,
    DefectKind,
    EventsHead,
    Head,
    VerifyReport,
    encode_report,
    parse_kept,
)
from nap_stream.scored_log.verify.run import verify
from tests.scored_log.builders import CARS, local_log, merged_segments, origin, scored
from tests.support.scored_records import RecordLog

FOLDER = partition_folder(CARS)
HEAD = ChainHead(CARS, 0, 30, "0a" * 32, "one")


def _compared(
    offsets: list[PartitionOffsets],
    heads: tuple[ChainHead, ...] = (HEAD,),
    defects: tuple[Defect, ...] = (),
    gaps: tuple[DeclaredGap, ...] = (),
    *,
    from_earliest: bool = True,
) -> BrokerReport:
    report = VerifyReport(1, 3, 6, 30, 0, gaps, heads, defects)
    return compare_with_broker(
        report, offsets, topic="cars", group_id="group", from_earliest=from_earliest
    )


def _kinds(report: BrokerReport) -> list[tuple[str, DefectKind]]:
    return [(defect.file, defect.kind) for defect in report.defects]


@pytest.mark.parametrize("committed", [None, 0, 29, 30])
@pytest.mark.parametrize("topic_id", [None, "one"])
def test_a_chain_that_lags_is_no_defect(committed: int | None, topic_id: str | None) -> None:
    one = PartitionOffsets(CARS, 0, 47, committed, topic_id)
    report = _compared([one])
    assert report.defects == ()
    assert report.partitions == (BrokerComparison(one, 0, 30, 17, 0, 0),)


def test_a_chain_at_the_end_has_no_lag() -> None:
    one = PartitionOffsets(CARS, 30, 30, 30, "one")
    assert _compared([one]) == BrokerReport(
        "cars", "group", (BrokerComparison(one, 0, 30, 0, 0, 0),), ()
    )


def test_beyond_broker() -> None:
    report = _compared([PartitionOffsets(CARS, 0, 29, None, None)])
    assert _kinds(report) == [(FOLDER, DefectKind.BEYOND_BROKER)]
    assert "the chain ends at 30, the partition at 29" in report.defects[0].detail
    assert report.partitions[0].lag == 0


def test_beyond_broker_where_the_topic_has_no_such_partition() -> None:
    other = PartitionOffsets(TopicPartition("cars", 1), 0, 9, None, None)
    report = _compared([other])
    assert _kinds(report) == [(FOLDER, DefectKind.BEYOND_BROKER)]
    assert "the topic has no such partition" in report.defects[0].detail
    assert report.partitions == (BrokerComparison(other, None, None, None, 0, 0),)


def test_behind_committed() -> None:
    report = _compared([PartitionOffsets(CARS, 0, 47, 33, "one")])
    assert _kinds(report) == [(FOLDER, DefectKind.BEHIND_COMMITTED)]
    assert "3 offsets are committed and in no segment" in report.defects[0].detail


def test_topic_id() -> None:
    report = _compared([PartitionOffsets(CARS, 0, 47, 30, "other")])
    assert _kinds(report) == [(FOLDER, DefectKind.TOPIC_ID)]
    assert report.defects[0].detail == (
        "the chain is of the topic with id one, the broker's is other"
    )


def test_a_replaced_topic_can_have_several_defects() -> None:
    report = _compared([PartitionOffsets(CARS, 0, 3, 40, "other")])
    assert [kind for _, kind in _kinds(report)] == [
        DefectKind.BEHIND_COMMITTED,
        DefectKind.BEYOND_BROKER,
        DefectKind.TOPIC_ID,
    ]


def test_chain_missing() -> None:
    other = TopicPartition("cars", 1)
    offsets = [
        PartitionOffsets(other, 0, 9, 4, None),
        PartitionOffsets(CARS, 0, 30, 30, None),
        PartitionOffsets(TopicPartition("cars", 2), 0, 9, None, None),
    ]
    report = _compared(offsets)
    assert _kinds(report) == [(genesis_path(other), DefectKind.CHAIN_MISSING)]
    assert [found.offsets.partition.partition for found in report.partitions] == [0, 1, 2]


def test_a_chain_whose_end_cannot_be_read_is_not_missing() -> None:
    damaged = Defect(segment_path(CARS, 20), DefectKind.UNREADABLE, "x")
    offsets = [PartitionOffsets(CARS, 0, 30, 30, None)]
    assert _compared(offsets, heads=(), defects=(damaged,)).defects == ()
    assert _kinds(_compared(offsets, heads=())) == [(genesis_path(CARS), DefectKind.CHAIN_MISSING)]


def test_a_gap_to_come_is_told_and_no_defect() -> None:
    report = _compared([PartitionOffsets(CARS, 41, 47, 30, "one")])
    assert report.defects == ()
    assert report.partitions[0].gap_to_come == 11


@pytest.mark.parametrize(
    ("earliest", "retained"),
    [(0, "[10, 20)"), (10, "[10, 20)"), (19, "[19, 20)"), (20, None), (29, None)],
)
def test_gap_retained(earliest: int, retained: str | None) -> None:
    gap = DeclaredGap(segment_path(CARS, 10), 10, 20, "retention")
    elsewhere = DeclaredGap(segment_path(TopicPartition("cars", 1), 10), 10, 20, "retention")
    report = _compared([PartitionOffsets(CARS, earliest, 30, 30, "one")], gaps=(gap, elsewhere))
    if retained is None:
        assert report.defects == ()
        return
    assert _kinds(report) == [(gap.file, DefectKind.GAP_RETAINED)]
    assert f"offsets {retained} are declared missing (retention)" in report.defects[0].detail
    assert report.defects[0].detail.endswith(f"it has all from {earliest} on")


def test_a_gap_that_was_asked_for_is_told_from_one_that_was_not() -> None:
    gap = DeclaredGap(segment_path(CARS, 10), 10, 20, f"offsets [10, 20): {_COMMITTED}")
    (defect,) = _compared([PartitionOffsets(CARS, 0, 30, 30, "one")], gaps=(gap,)).defects
    assert defect.detail.endswith("if it made the gap, the alert topic has an event of it")


@pytest.mark.parametrize("from_earliest", [True, False])
def test_start_retained(from_earliest: bool) -> None:
    later = ChainHead(CARS, 9, 30, "0a" * 32, "one")
    retained = [PartitionOffsets(CARS, 4, 30, 30, "one")]
    report = _compared(retained, heads=(later,), from_earliest=from_earliest)
    assert report.partitions[0].before_chain == 5
    expected = [(genesis_path(CARS), DefectKind.START_RETAINED)] if from_earliest else []
    assert _kinds(report) == expected
    assert all("has `chain_begun` with offset=9" in defect.detail for defect in report.defects)
    deleted = [PartitionOffsets(CARS, 9, 30, 30, "one")]
    assert _compared(deleted, heads=(later,), from_earliest=from_earliest).defects == ()


def test_chains_of_other_topics_are_left_alone() -> None:
    dogs = ChainHead(TopicPartition("dogs", 0), 0, 900, "0a" * 32)
    assert _compared([PartitionOffsets(CARS, 0, 30, 30, None)], heads=(HEAD, dogs)).defects == ()


REPORT = {
    "kind": "nap-stream verify report",
    "version": 1,
    "chains": [
        {
            "topic": "cars",
            "partition": 0,
            "topic_id": None,
            "start_offset": 0,
            "end_offset": 1,
            "sha256": "0a" * 32,
        }
    ],
}


def _publish(log: RecordLog, count: int, *, p_value: float = 0.5) -> None:
    position = log.end(CARS) or log.begin(CARS, 5)
    for _ in range(count):
        rows = [scored(origin(position.offset), p_value=p_value)]
        position = log.publish(CARS, position, position.offset + 1, rows).position


def _kept(root: Path) -> tuple[Head, ...]:
    circumstances = Circumstances(str(root), None, "1", 0)
    return parse_kept(encode_report(verify(LocalStore(root)), None, circumstances), "kept.json")


def _kept_kinds(root: Path, kept: tuple[Head, ...]) -> list[tuple[str, DefectKind]]:
    return [(found.file, found.kind) for found in compare_with_kept(LocalStore(root), kept)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_chain_that_went_on_and_was_compacted_still_has_its_kept_end(
    tmp_path: Path, count: int
) -> None:
    log = local_log(tmp_path)
    log.begin(CARS, 5)
    _publish(log, count)
    kept = _kept(tmp_path)
    assert [head.end_offset for head in kept if isinstance(head, ChainHead)] == [5 + count]
    assert _kept_kinds(tmp_path, kept) == []
    _publish(log, 6 - count)
    assert _kept_kinds(tmp_path, kept) == []
    store = LocalStore(tmp_path)
    paths = [segment_path(CARS, base) for base in range(5, 10)]
    store.replace(paths[0], merged_segments(store, paths))
    assert _kept_kinds(tmp_path, kept) == []
    store.remove(paths[1:])
    assert verify(store, deep=True).clean
    assert _kept_kinds(tmp_path, kept) == []


def test_a_chain_that_was_written_anew_is_clean_but_has_not_its_kept_end(tmp_path: Path) -> None:
    _publish(local_log(tmp_path), 3)
    kept = _kept(tmp_path)
    shutil.rmtree(tmp_path / FOLDER)
    _publish(local_log(tmp_path), 4, p_value=0.4)
    assert verify(LocalStore(tmp_path), deep=True).clean
    assert _kept_kinds(tmp_path, kept) == [(FOLDER, DefectKind.KEPT_DIGEST)]


@pytest.mark.parametrize("cut", ["end", "chain"])
def test_what_was_cut_off_shows(tmp_path: Path, cut: str) -> None:
    _publish(local_log(tmp_path), 3)
    kept = _kept(tmp_path)
    if cut == "end":
        (tmp_path / segment_path(CARS, 7)).unlink()
    else:
        shutil.rmtree((tmp_path / FOLDER).parent)
    assert verify(LocalStore(tmp_path), deep=True, may_be_empty=True).clean
    (defect,) = compare_with_kept(LocalStore(tmp_path), kept)
    assert (defect.file, defect.kind) == (FOLDER, DefectKind.KEPT_DIGEST)
    assert "no segment ends there" in defect.detail


def test_the_chain_of_events_has_its_kept_end(tmp_path: Path) -> None:
    _publish(local_log(tmp_path), 1)
    store = LocalStore(tmp_path)
    events = [Event(time_ms=n, kind="alert", by="x", data={}) for n in range(3)]
    for event in events[:2]:
        last = append_event(store, event)
    kept = _kept(tmp_path)
    assert kept[1:] == (EventsHead(2, last.sha256),) == verify(store).ends[1:]
    append_event(store, events[2])
    assert _kept_kinds(tmp_path, kept) == []
    later = _kept(tmp_path)
    store.remove([event_path(2)])
    assert verify(store).clean
    (defect,) = compare_with_kept(store, later)
    assert (defect.file, defect.kind) == (event_path(2), DefectKind.KEPT_DIGEST)
    assert "for event 2; now there is none" in defect.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"kind": "other", "version": 1, "chains": []}),
        json.dumps({"kind": "nap-stream verify report", "version": 2, "chains": []}),
        json.dumps({"kind": "nap-stream verify report", "version": 1, "chains": [{"topic": 1}]}),
        json.dumps({"kind": "nap-stream verify report", "version": 1, "chains": []}),
        json.dumps({**REPORT, "events": {"count": "2", "sha256": "0a" * 32}}),
        json.dumps({**REPORT, "events": []}),
    ],
)
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a report"):
        parse_kept(text, "kept.json")
