"""What a process does that races another for every segment of a chain."""

from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

from nap_stream.errors import SegmentConflictError
from tests.scored_log.builders import CARS, local_log, origin, scored
from tests.support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


def race(
    root: Path, writer_id: str, start: Barrier, rounds: int, won_by: "Queue[tuple[str, list[int]]]"
) -> None:
    """Try to publish every offset as a segment of its own, and tell the base offsets won."""
    log = local_log(root, writer_id)
    won = []
    start.wait(PATIENCE_S)
    position = log.begin(CARS, 0)
    while position.offset < rounds:
        start.wait(PATIENCE_S)
        record = scored(origin(position.offset, key=writer_id.encode()))
        try:
            position = log.publish(CARS, position, position.offset + 1, [record]).position
            won.append(position.offset - 1)
        except SegmentConflictError:
            found = log.end(CARS)
            assert found is not None
            position = found
    won_by.put((writer_id, won))
