"""Two processes race for every position of a chain, and each of them loses as often as it wins."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from nap_stream.clock import SystemClock
from nap_stream.errors import SegmentConflictError
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.read import segments
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.stores.local import LocalStore, PosixOperations
from nap_stream.scored_log.verify.run import verify
from tests.faults.harness_processes import FORKS
from tests.scored_log.builders import CALIBRATION, CARS, MODEL, origin, scored
from tests.support.log_files import read_footer
from tests.support.scored_records import RecordLog
from tests.support.waiting import PATIENCE_S

POSITIONS = 40
LENGTHS = {"a": 3, "b": 5}
"""Offsets of each one's segments: the loser must go on from the winner's end, not from its own."""


class _OperationsInTurn(PosixOperations):
    """Links when both have a durable temporary: first the one whose turn it is, or both at once.

    Args:
        meeting: Where the two wait for each other.
        first: Whether this one links first, at even and at odd links; None for at once.
    """

    def __init__(self, meeting: Barrier, first: tuple[bool, bool] | None) -> None:
        self._meeting, self._first = meeting, first
        self._links = 0

    def link(self, temporary: Path, final: Path) -> None:
        if final.suffix != ".parquet":
            super().link(temporary, final)
            return
        first = None if self._first is None else self._first[self._links % 2]
        self._links += 1
        self._meeting.wait(PATIENCE_S)
        if first is False:
            self._meeting.wait(PATIENCE_S)  # until the other one has linked
        try:
            super().link(temporary, final)
        finally:
            if first is True:
                self._meeting.wait(PATIENCE_S)


def _race(
    root: Path, name: str, meeting: Barrier, first: tuple[bool, bool] | None
) -> tuple[list[int], list[int]]:
    """Contend for every position; return the base offsets won and those lost."""
    log = RecordLog(
        LocalStore(root, _OperationsInTurn(meeting, first)),
        WriterIdentity(name, MODEL, CALIBRATION),
        SystemClock(),
    )
    won, lost = [], []
    position = log.begin(CARS, 0)
    for _ in range(POSITIONS):
        base = position.offset
        end = base + LENGTHS[name]
        records = [scored(origin(offset, key=name.encode())) for offset in range(base, end)]
        try:
            position = log.publish(CARS, position, end, records).position
            won.append(base)
        except SegmentConflictError:
            found = log.end(CARS)
            assert found is not None
            position = found
            lost.append(base)
        # Nobody contends for the next position before both know where it is.
        meeting.wait(PATIENCE_S)
    return won, lost


@pytest.mark.parametrize(
    "in_turn",
    [
        pytest.param(True, id="in turn"),
        pytest.param(False, id="at once", marks=pytest.mark.slow),
    ],
)
def test_every_position_has_one_winner_and_its_loser_goes_on_from_there(
    tmp_path: Path, in_turn: bool
) -> None:
    with FORKS.Manager() as manager, ProcessPoolExecutor(2, FORKS) as pool:
        meeting = manager.Barrier(2)
        turns = {"a": (True, False), "b": (False, True)}
        a, b = (
            pool.submit(_race, tmp_path, name, meeting, turns[name] if in_turn else None)  # type: ignore[arg-type] # a proxy
            for name in LENGTHS
        )
        (a_won, a_lost), (b_won, b_lost) = a.result(PATIENCE_S), b.result(PATIENCE_S)

    assert (a_won, b_won) == (b_lost, a_lost)
    assert len(a_won) + len(b_won) == POSITIONS
    if in_turn:
        assert len(a_won) == len(b_won)
    store = store_at(tmp_path)
    writers = {
        footer.base_offset: footer.writer_id
        for path in segments(store, CARS)
        for footer in [read_footer(store, path)]
    }
    assert writers == dict.fromkeys(a_won, "a") | dict.fromkeys(b_won, "b")
    end = 3 * len(a_won) + 5 * len(b_won)
    offsets = [
        row["offset"]
        for batch in scan(store, Query(topic=CARS.topic), ("offset",))
        for row in batch.to_pylist()
    ]
    assert offsets == list(range(end))
    report = verify(store, deep=True)
    assert report.clean, report.defects
    assert [head.end_offset for head in report.heads] == [end]
