import dataclasses

import numpy as np
import pytest

from nap_stream.core.panes import count_panes
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
    optional = {"react", "ash", "scale", "dice", "knn", "fdbd", "mahalanobis", "gen", "nci"}
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


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 3)])
def test_a_range_of_offsets_holds_some(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not an offset range"):
        OffsetRange(PARTITION, start, end)
    panes = count_panes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_), pane_ms=10)
    with pytest.raises(ValueError, match="not an offset range"):
        SegmentSummary(PARTITION, start, end, {}, panes, None, "path")
