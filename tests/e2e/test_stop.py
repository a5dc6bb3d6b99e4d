"""SIGTERM in the middle of the stream, and a second run that takes up where the first ended."""

import signal
from pathlib import Path

import pytest

from nap_stream.demo.produce import produce
from nap_stream.scored_log.events import read_events
from nap_stream.scored_log.proof.checkpoint import read_checkpoints
from nap_stream.scored_log.proof.note import create_key
from nap_stream.scored_log.stores.local import LocalStore
from tests.e2e.monitor import PARTITIONS, new_monitor, streaming
from tests.e2e.on_ray import RayHead, running, start_run
from tests.support.apache_kafka import ApacheKafka
from tests.support.images import write_images
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.slow]

IMAGES = 100
RATE = 150.0
ROWS = 50
"""Of a segment."""


def test_sigterm_publishes_commits_and_leaves_and_the_next_run_goes_on(
    apache_kafka: ApacheKafka, calibration: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    # Only the shutdown publishes a segment with fewer rows. It empties what is in hand into the
    # last one, which must be too little to fill one.
    key = create_key(tmp_path / "signing.key", "line-3")
    log = {
        "root": "log",
        "segment_max_age_s": 300,
        "segment_max_rows": ROWS,
        "checkpoints": {"key_file": str(tmp_path / "signing.key")},
    }
    worker = {"batch_size": 4, "max_in_hand_images": 8}
    monitor = new_monitor(
        apache_kafka.bootstrap, tmp_path / "monitor", calibration, log=log, worker=worker
    )
    images = write_images(tmp_path / "images", IMAGES)
    with (
        running(monitor, ray_head, tmp_path / "first") as first,
        streaming(monitor, images, RATE) as sent,
    ):
        wait_until(lambda: monitor.is_under_way(4 * ROWS), "rows of every partition")
        before = {number: chain[-1].end_offset for number, chain in monitor.footers().items()}
        first.send(signal.SIGTERM)
        assert first.wait() == 0, first.tail
        assert '"ending": "stopped"' in first.stderr
        assert '"unclean": []' in first.stderr

    total = sent.messages + produce(monitor.kafka, images).messages
    after_first = monitor.row_names()
    assert len(after_first) < total
    last = {number: chain[-1] for number, chain in monitor.footers().items()}
    assert any(
        footer.rows < ROWS and footer.base_offset >= before[number]
        for number, footer in last.items()
    ), "nothing was in flight, or it was dropped"
    ends = monitor.chain_ends()
    assert len(ends) == PARTITIONS
    assert monitor.committed() == ends
    store = LocalStore(monitor.log)
    newest = [found.checkpoint for found in read_checkpoints(store, [key], [])][-1]
    assert newest is not None
    events, *heads = newest.heads
    assert {head.partition.partition: head.end_offset for head in heads} == ends
    assert [event.kind for event in read_events(store)][events.end_offset - 1 :] == ["run-stopped"]
    group = monitor.group()
    assert group["group_state"].lower() == "empty", group
    assert group["members"] == []

    # Who holds rows that are not published yet is not idle.
    monitor.change(log={"segment_max_age_s": 0.5})
    with start_run(monitor, ray_head, tmp_path / "second", "--until-idle", "2") as second:
        assert second.wait() == 0, second.tail

    monitor.assert_complete(total)
    assert set(after_first) < set(monitor.row_names())
