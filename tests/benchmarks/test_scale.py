from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale, scale_coordinator
from benchmarks.scale_coordinator import Load
from tests.e2e.calibrated import faulty_net
from tests.support.apache_kafka import ApacheKafka


@pytest.mark.parametrize("keys", [0, 40])
def test_a_simulated_coordinator_alerts_once_every_partition_has_told(keys: int) -> None:
    load = Load(partitions=8, workers=2, segment_age_s=5, rows_per_s=20, keys=keys)
    cost = scale_coordinator.measure(load)
    assert load.segments_per_s == 1.6
    assert cost.alert_s is not None
    # Each partition tells of the pane within 5 s of its end; two panes at most show the drift.
    assert 1 < cost.alert_s < 8
    assert 0 < cost.cpu < 1
    assert cost.checkpoint_bytes > 0
    assert 0 < cost.tick_ms <= cost.worst_tick_ms
    assert scale_coordinator.show(cost).count("|") == scale_coordinator.HEADER.count("|") // 2


def test_a_source_covers_its_stream_without_holes() -> None:
    load = Load(partitions=3, workers=1, segment_age_s=5, rows_per_s=10, keys=6)
    source = scale_coordinator.Source(load, 1, np.random.default_rng(0))
    start_ms = scale_coordinator.START_MS
    first, second = (source.segment(start_ms + ms, 0.0) for ms in (5_100, 10_100))
    assert (first.base_offset, first.end_offset, second.base_offset) == (0, 50, 50)
    assert first.panes.keys == ("camera-1", "camera-4")
    assert first.panes.records.sum() == 50
    assert first.panes.start_ms[-1] < second.panes.start_ms[0] == start_ms + 5_000
    assert 10 < first.panes.flagged.sum() < 40, "half of drifted records are flagged"


def test_a_worker_times_every_message_and_every_batch() -> None:
    load = Load(partitions=3_000, workers=100, segment_age_s=5, rows_per_s=10, keys=0)
    counts = Counter(scale_coordinator.stages_a_second(load, 30))
    counts_a_second = {
        "decode": 300,
        "poll": 300,
        "score": 10,
        "batch": 10,
        "publish": 6,
        "commit": 6,
    }
    assert counts == counts_a_second
    assert Counter(scale_coordinator.stages_a_second(load, 0))["poll"] == 10


@pytest.mark.ray
@pytest.mark.kafka
@pytest.mark.slow
def test_a_cell_of_the_whole_line(apache_kafka: ApacheKafka, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    cell = scale.Cell(partitions=2, workers=1, rate=100, seconds=3)
    cost = scale.run_cell(
        cell, apache_kafka.bootstrap, faulty_net(tmp_path / "net"), tmp_path / "cell"
    )
    assert (cell.busy, cell.images) == (1, 300)
    assert 0 < cost.share <= 1, "no model takes more than its rate"
    assert all(cores >= 0 for cores in cost.cores)
    assert cost.worker_bytes > cost.coordinator_bytes > 0
    assert cost.alert_s is not None
    assert cost.alert_s > 0
