"""Rows of the log beside the messages of the topic, on a log that a real line has written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nap_stream import contents
from nap_stream.clock import ManualClock
from nap_stream.contents import _Topic, compare_contents
from nap_stream.errors import BrokerUnavailableError
from nap_stream.kafka import offsets as kafka_offsets
from nap_stream.kafka.offsets import offsets_of
from nap_stream.records import Status, TopicPartition
from nap_stream.scored_log.format import seal_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.load import load_uncalibrated_settings
from tests.cli.program import Call
from tests.cli.test_show import MODEL, monitored, send_all
from tests.scored_log.builders import CARS, chain, failed, origin, scored
from tests.scored_log.test_prune import prune_days, write_days
from tests.source.test_peek import send
from tests.support.memory_store import MemoryStore
from tests.support.topics import new_settings

pytestmark = [pytest.mark.data, pytest.mark.embedded]


def test_what_a_topic_holds_otherwise_is_named(nap: Call, embedded: str, tmp_path: Path) -> None:
    kafka = new_settings(embedded)
    made = monitored(tmp_path, kafka.topic, embedded, topic_id=None)
    send_all(kafka, made, {5: made.files[6, 0], 20: made.files[7, 0], 22: b"behind the end"})
    verify = ("verify", "--config", made.config, "--against-broker")
    assert nap(*verify).exit_code == 0
    ended = nap(*verify, "--contents")
    assert ended.exit_code == 1
    defects = [line for line in ended.out.splitlines() if line.startswith("defect")]
    logged, sent = (made.rows[offset]["sha256"] for offset in (5, 6))
    place = f"defect  topic={kafka.topic}/partition=0: topic_content: offset"
    assert defects == [
        f"{place} 5, image 0 has the SHA-256 {sent} in the topic, and its row {logged}",
        f"{place} 20 has 1 images in the topic, and 3 rows in the log",
    ]
    assert "contents 22 messages read, 20 images have the SHA-256 of their rows" in ended.out
    assert nap("verify", "--config", made.config, "--contents").exit_code == 2


def test_rows_and_messages_that_have_no_counterpart(tmp_path: Path) -> None:
    made = monitored(tmp_path)
    settings = load_uncalibrated_settings(made.config)

    def none(*_: Any) -> None:
        pass

    topic = _Topic(LocalStore(tmp_path / "log"), settings, None, none)
    sha256 = {row["offset"]: row["sha256"] for row in made.rows}
    sent: dict[int, list[tuple[str | None, bool]]] = {
        offset: [(sha256[offset], False)] for offset in range(4) if offset != 2
    }
    sent[3] = [(None, True)]
    sent[30] = [("ab", False)]
    found = list(topic._chunk(TopicPartition("images", 0), (0, 3), sent))
    assert found == [(30, "offset 30 is in the topic, and the log has no row of it")]
    # Of 2 the topic has no message any more; the image of 3 lies elsewhere, and is not had now.
    assert (topic.images, topic.gone, topic.unread) == (2, 1, 1)


def test_an_image_that_was_away_when_it_was_logged_is_no_defect(tmp_path: Path) -> None:
    rows = [
        replace(failed(origin(0), Status.MISSING), sha256=None),
        failed(origin(1), Status.FETCH_FAILED),
        scored(origin(2)),
        failed(origin(3)),
    ]
    chain(tmp_path, [(4, rows)])
    topic = _Topic(LocalStore(tmp_path), None, None, lambda *_: None)  # type: ignore[arg-type]
    sent: dict[int, list[tuple[str | None, bool]]] = {
        0: [("ab", False)],
        # The archive that is had now holds two.
        1: [("ab", False), ("cd", False)],
        2: [("c3" * 32, False)],
        3: [(None, False)],
    }
    assert not list(topic._chunk(CARS, (0, 3), sent))
    assert (topic.images, topic.gone, topic.unread) == (1, 0, 3)


def test_a_topic_that_cannot_be_read_leaves_what_was_verified(
    nap: Call, embedded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = new_settings(embedded)
    made = monitored(tmp_path, kafka.topic, embedded, topic_id=None)
    send_all(kafka, made, {})

    def fails(*_: Any) -> Any:
        raise BrokerUnavailableError("nobody answers", kafka.topic)

    monkeypatch.setattr(contents, "messages_between", fails)
    report = tmp_path / "report.json"
    ended = nap(
        *("verify", "--config", made.config, "--against-broker", "--contents", "--report", report)
    )
    assert ended.exit_code == 1
    assert "the rest was not compared: " in ended.out
    assert ended.out.endswith("clean, but not compared with all that the broker has\n")
    told = json.loads(report.read_text(encoding="utf-8"))
    assert (told["defects"], "nobody answers" in told["broker"]["contents"]["problem"]) == (
        [],
        True,
    )

    # It answered when it was asked for what is committed, and is away once the log is read.
    monkeypatch.setattr(kafka_offsets, "offsets_of", fails)
    ended = nap("verify", "--config", made.config, "--against-broker", "--report", report)
    assert ended.exit_code == 1
    assert "broker  not compared: " in ended.out
    assert ended.out.endswith("clean, but not compared with all that the broker has\n")
    told = json.loads(report.read_text(encoding="utf-8"))
    assert (told["counts"]["rows"], told["broker"]["partitions"]) == (len(made.rows), [])
    assert "nobody answers" in told["broker"]["problem"]


def test_what_was_pruned_is_counted_and_not_called_missing(embedded: str, tmp_path: Path) -> None:
    """The seal holds a gap. The topic has all that was pruned, and one message more, no image."""
    kafka = new_settings(embedded)
    partition = TopicPartition(kafka.topic, 0)
    store = MemoryStore()
    write_days(store, partition)
    prune_days(store)
    send(kafka, [b"no image"] * 17)
    config = tmp_path / "monitor.yaml"
    named = {"bootstrap_servers": [embedded], "topic": kafka.topic}
    config.write_text(
        yaml.safe_dump({"kafka": named, "model": MODEL, "log": {"root": str(tmp_path)}})
    )
    settings = load_uncalibrated_settings(config)
    offsets = offsets_of(settings.kafka, {}, [settings.kafka.topic])
    report = verify(store, clock=ManualClock())
    assert [gap.file for gap in report.gaps] == [seal_path(partition, 0)]
    found = compare_contents(store, settings, report, offsets, lambda *_: None)
    assert (found.pruned, found.messages) == (16, 1)
    assert [(each.kind, each.detail.split(",")[0]) for each in found.defects] == [
        (DefectKind.TOPIC_CONTENT, "offset 16")
    ]
