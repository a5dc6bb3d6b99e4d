import dataclasses

import numpy as np
import pytest

from nap_stream.core.panes import count_panes
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw
from nap_stream.drift.records import CalibrationFacts
from nap_stream.records import (
    OffsetRange,
    Origin,
    ScoredRecord,
    Scores,
    SegmentSummary,
    Status,
    TopicPartition,
)

SCORES = Scores(
    class_id=3,
    class_name="cat",
    confidence=0.75,
    max_logit=4.25,
    energy=4.5,
    nap=2.25,
    fused=-3.5,
    ood_p_value=0.5,
    is_ood=False,
)
PARTITION = TopicPartition("cars", 0)
ORIGIN = Origin(PARTITION, 7, 1, None, 0, 0)


def _record(status: Status, scores: Scores | None) -> ScoredRecord:
    return ScoredRecord(ORIGIN, status, None, 0, scores, None, None, None, None)


def test_scores_that_a_run_may_leave_out_are_none_unless_given() -> None:
    optional = {"react", "ash", "scale", "dice", "knn"}
    defaults = {f.name: f.default for f in dataclasses.fields(Scores)}
    assert {name for name, default in defaults.items() if default is None} == optional
    assert {default for name, default in defaults.items() if name not in optional} == {
        dataclasses.MISSING
    }
    assert {getattr(SCORES, name) for name in optional} == {None}
    assert dataclasses.replace(SCORES, knn=1.25).knn == 1.25


def test_a_record_has_scores_exactly_where_it_is_ok() -> None:
    assert _record(Status.OK, SCORES).scores is SCORES
    assert _record(Status.CORRUPT, None).scores is None
    with pytest.raises(ValueError, match=r"contradict each other: cars/0@7\[1\] ok"):
        _record(Status.OK, None)
    with pytest.raises(ValueError, match=r"contradict each other: cars/0@7\[1\] corrupt"):
        _record(Status.CORRUPT, SCORES)


LAW, SMALL = FlagRateLaw(5, 100), FlagRateLaw(1, 38)
TAILS = ((LAW,),) * len(TAIL_EVENTS)


@pytest.mark.parametrize(
    ("per_class", "laws"),
    [
        (False, ()),
        (False, (SMALL,)),
        (False, (SMALL, LAW)),
        (True, (LAW, SMALL)),
        (True, (SMALL, SMALL)),
        (True, (FlagRateLaw(5, 101),)),
    ],
)
def test_calibration_facts_refuse_laws_of_other_groups(
    per_class: bool, laws: tuple[FlagRateLaw, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected distinct laws|of 100 images"):
        CalibrationFacts(0.05, 100, per_class, laws, 2, TAILS, "c", "m")


@pytest.mark.parametrize(("groups", "tails"), [(1, TAILS), (0, TAILS), (2, TAILS[1:]), (2, ())])
def test_calibration_facts_refuse_tails_and_groups_that_are_not_all(
    groups: int, tails: tuple[tuple[FlagRateLaw, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=r"tails, . groups of 2"):
        CalibrationFacts(0.05, 138, True, (SMALL, LAW), groups, tails, "c", "m")


def test_more_groups_than_laws_have_equal_ones() -> None:
    facts = CalibrationFacts(0.05, 1_000, True, (SMALL, LAW), 10, (*TAILS[1:], ()), "c", "m")
    assert facts.groups == 10
    assert facts.tail_laws[-1] == ()


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 3)])
def test_a_range_of_offsets_holds_some(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not an offset range"):
        OffsetRange(PARTITION, start, end)
    panes = count_panes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_), pane_ms=10)
    with pytest.raises(ValueError, match="not an offset range"):
        SegmentSummary(PARTITION, start, end, {}, panes, None, "path")
