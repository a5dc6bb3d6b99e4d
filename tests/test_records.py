import numpy as np
import pytest

from nap_stream.core.panes import count_images, count_panes
from nap_stream.records import OffsetRange, SegmentSummary, TopicPartition

PARTITION = TopicPartition("cars", 0)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (3, 3), (4, 3)])
def test_a_range_of_offsets_holds_some(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not an offset range"):
        OffsetRange(PARTITION, start, end)
    panes = count_panes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_), pane_ms=10)
    none = np.zeros(0, np.int64)
    images = count_images(none, none, pane_ms=10, kinds=2)
    with pytest.raises(ValueError, match="not an offset range"):
        SegmentSummary(PARTITION, start, end, {}, panes, images, None, "path")
