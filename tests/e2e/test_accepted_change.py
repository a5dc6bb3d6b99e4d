"""A camera turns bad, and somebody accepts it: a real log, coordinators, broker and commands."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nap_stream.alert.kafka import read_alerts
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.core.blocks import blocks_of
from nap_stream.kafka.client import create_topics
from nap_stream.monitor.acceptances import LOOK_EVERY_S
from nap_stream.monitor.coordinator import Coordinator, open_coordinator
from nap_stream.records import Acceptance, Origin, TopicPartition
from nap_stream.scored_log.acceptances import read_acceptances
from nap_stream.scored_log.chain import WriterIdentity
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import LAST_OFFSET, SummaryShape, summarise_chain, summary_shape
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.drift import KeySettings
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
from tests.cli.program import Ended, call
from tests.scored_log.builders import scored
from tests.support.baselines import BASELINE_BLOCKS, BLOCK_MS, USUAL, calibration_with, cameras
from tests.support.schemas import alert_schema
from tests.support.scored_records import RecordLog, ScoredRecord, summarise_records
from tests.support.topics import new_settings

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

SPACING_MS = 30
"""Between the records of the stream: thirty times that of `cameras`."""
PANE_MS, STEP_MS = 300, SPACING_MS * BLOCK_MS
SEGMENT = 500
BAD = "camera-2"


class Site:
    """A log that grows, its monitor, and the commands that somebody types."""

    def __init__(self, folder: Path, broker: str) -> None:
        kafka = new_settings(broker)
        self.topic, self.folder = TopicPartition(kafka.topic, 0), folder
        self.store = LocalStore(folder / "log")
        (folder / "log").mkdir()
        self.now_ms = SystemClock().now_ms()
        # A while ago, at the end of a block.
        self.turn_ms = (self.now_ms // STEP_MS - 30) * STEP_MS
        self.start_ms = self.turn_ms - (BASELINE_BLOCKS + 10) * STEP_MS
        self.config = folder / "monitor.yaml"
        self.alert_topic = f"{kafka.topic}-alerts"
        create_topics(kafka, [self.alert_topic], 1)
        tree = {
            "kafka": {"topic": kafka.topic, "bootstrap_servers": broker},
            "model": {"factory": "models:net"},
            "calibration": "calibration",
            "log": {"root": "log"},
            "drift": {
                "pane_ms": PANE_MS,
                "window_records": 500,
                "false_alarms": "one per day at 33 images/s",
                "keys": {"by": "key"},
            },
            "alerts": {"topic": self.alert_topic, "critical_fraction": 0.95},
            "metrics": {"port": 0},
        }
        self.config.write_text(yaml.safe_dump(tree))
        self.kafka = kafka
        self._seed, self._fingerprint = 0, "d" * 64
        self._baseline()

    @property
    def settings(self) -> Settings:
        return load_settings(self.config)

    def _baseline(self) -> None:
        """The first stretch is in the log before there is a monitor; it is vouched for."""
        end_ms = self.start_ms + BASELINE_BLOCKS * STEP_MS
        shape = SummaryShape(PANE_MS, 0, KeySettings())
        list(self.publish(self.start_ms, end_ms, USUAL, shape))
        found = summarise_chain(self.store, self.topic, 0, LAST_OFFSET, shape)
        blocks = blocks_of((each.panes for each in found), STEP_MS)
        made = calibration_with(blocks, made_ms=end_ms)
        write_calibration(made, self.folder / "calibration")
        self._fingerprint = made.fingerprint

    def publish(
        self,
        start_ms: int,
        until_ms: int,
        rates: dict[str, float],
        shape: SummaryShape | None = None,
    ) -> Iterator[Any]:
        """Publish what the cameras bring meanwhile, as summaries of segments."""
        shape = shape or summary_shape(self.settings)
        self._seed += 1
        rows = cameras(0, (until_ms - start_ms) // SPACING_MS, rates, seed=self._seed)
        log = RecordLog(
            self.store,
            WriterIdentity("worker-0", "1" * 64, self._fingerprint),
            ManualClock(self.now_ms),
        )
        position = log.end(self.topic) or log.begin(self.topic, 0)
        for first in range(0, len(rows), SEGMENT):
            records = [
                self._record(position.offset + i, start_ms + row.time_ms * SPACING_MS, row)
                for i, row in enumerate(rows[first : first + SEGMENT])
            ]
            end = position.offset + len(records)
            published = log.publish(self.topic, position, end, records)
            yield summarise_records(published, records, shape)
            position = published.position

    def _record(self, offset: int, time_ms: int, row: Any) -> ScoredRecord:
        where = Origin(self.topic, offset, 0, row.key.encode(), time_ms, time_ms + 5)
        usual = 0.051 + 0.949 * ((offset + 1) * 0.618_034 % 1)
        record = scored(where, p_value=0.01 if row.flagged else usual, class_id=0)
        return replace(record, scored_time_ms=time_ms + 9)

    def coordinator(self, clock: ManualClock) -> Coordinator:
        facts = load_calibration(self.folder / "calibration").facts
        return open_coordinator(self.settings, facts, clock, None)

    def sent(self) -> list[dict[str, Any]]:
        """The alerts of the topic so far."""
        found = read_alerts(
            *(self.kafka, self.alert_topic),
            clock=SystemClock(),
            follow=False,
            from_beginning=True,
        )
        return [dict(each.event or {}) for each in found]


def of_camera(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    data = [event["data"] for event in events]
    return [(each["key"], each["reason"]) for each in data if each["key"] is not None]


def feed(coordinator: Coordinator, summaries: Iterator[Any]) -> None:
    for summary in summaries:
        coordinator.submit(summary)
    coordinator.tick()


def test_a_camera_turns_bad_and_rebaseline_ends_its_alert(
    tmp_path: Path,
    embedded: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    site = Site(tmp_path, embedded)

    def nap(*arguments: str) -> Ended:
        return call([*arguments], monkeypatch, capfd)

    clock, bad = ManualClock(site.now_ms), {**USUAL, BAD: 0.6}
    coordinator = site.coordinator(clock)
    feed(coordinator, site.publish(site.turn_ms - 10 * STEP_MS, site.turn_ms, USUAL))
    assert site.sent() == []
    fired_ms = site.turn_ms + 25 * STEP_MS
    feed(coordinator, site.publish(site.turn_ms, fired_ms, bad))
    assert of_camera(site.sent()) == [(BAD, "began")]

    turned = datetime.fromtimestamp(site.turn_ms / 1000, UTC).isoformat(timespec="seconds")
    typed = ("--by", "Ann", "--reason", "line 2 was retooled", "--from", turned)
    mistyped = nap("rebaseline", "-c", str(site.config), "--key", "camera2", *typed)
    assert mistyped.exit_code == 2
    assert "the nearest: 'camera-2', 'camera-3', 'camera-1'" in mistyped.err
    assert read_acceptances(site.store, site.topic.topic) == ()
    ended = nap("rebaseline", "-c", str(site.config), "--key", BAD, *typed)
    assert (ended.exit_code, ended.err) == (0, "")
    assert "accepted as number 0: camera-2 as it is since" in ended.out
    (acceptance,) = read_acceptances(site.store, site.topic.topic)
    assert acceptance.effective_ms - SystemClock().now_ms() in range(30_000, 91_000)

    # It is known before it takes effect, and another coordinator takes over in between.
    clock.advance(LOOK_EVERY_S)
    coordinator.tick()
    effective_ms = acceptance.effective_ms // STEP_MS * STEP_MS
    feed(coordinator, site.publish(fired_ms, effective_ms - 5 * STEP_MS, bad))
    coordinator.flush(20, input_ended=False)
    coordinator.close()
    coordinator = site.coordinator(clock)
    feed(coordinator, site.publish(effective_ms - 5 * STEP_MS, effective_ms + 10 * STEP_MS, bad))
    coordinator.flush(20)
    now = coordinator.status().drift
    coordinator.close()
    assert now.keys_firing == 0
    assert now.blocks is not None
    assert (now.blocks.accepted, now.blocks.new_keys) == (1, 1)

    require_told(site.sent(), acceptance)
    replayed = nap("replay", "--config", str(site.config), "--json")
    again = [json.loads(line)["id"] for line in replayed.out.splitlines()]
    assert again == [event["id"] for event in site.sent()]
    shown = nap("alerts", "--config", str(site.config), "--key", BAD)
    assert f"RESOLVED  WARNING  ood-fraction  {BAD}" in shown.out
    assert "Acceptance 0: as it is since" in shown.out
    assert verify(site.store, deep=True).clean


def require_told(events: list[dict[str, Any]], acceptance: Acceptance) -> None:
    """Fail unless the alert of the camera began, and ended as it was accepted."""
    for event in events:
        jsonschema.validate(event, alert_schema())
    assert of_camera(events) == [(BAD, "began"), (BAD, "accepted")]
    (told,) = [event for event in events if event["data"]["reason"] == "accepted"]
    assert told["type"] == "io.nap-stream.drift.resolved"
    assert told["data"]["acceptance"]["by"] == "Ann"
    assert "line 2 was retooled" in told["data"]["summary"]
    pane_end = datetime.fromisoformat(told["time"]).timestamp() * 1000
    assert 0 <= pane_end - acceptance.effective_ms < PANE_MS
