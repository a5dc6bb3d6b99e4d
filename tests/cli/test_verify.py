"""nap-stream verify: reports, exit codes, the broker."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka.structs import OffsetAndMetadata
from kafka.structs import TopicPartition as KafkaPartition

import nap_stream
from nap_stream.errors import TopicNotFoundError
from nap_stream.kafka.client import create_topics
from nap_stream.kafka.offsets import committed_offsets, offsets_of
from nap_stream.records import PartitionOffsets, TopicPartition
from nap_stream.scored_log.events import Event, append_event, event_path
from nap_stream.scored_log.format import segment_path
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.report import DefectKind
from nap_stream.settings.schema import KafkaSettings
from tests.cli.program import Call
from tests.scored_log.builders import (
    CARS,
    chain,
    failed,
    local_log,
    merged_segments,
    origin,
    scored,
)
from tests.support.apache_kafka import ApacheKafka
from tests.support.topics import administering, delete_before, new_settings, send

MONITOR = """\
kafka: {{topic: {topic}, group_id: {group}, bootstrap_servers: "{servers}", connect_timeout_s: 300}}
model:
  factory: tests.support.tiny_net:build
  python_path: [{folder}]
  class_names: [circle, square, cross]
  preprocessing: {{resize: null, crop: 16}}
calibration: calibration
log: {{root: log}}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """[0, 3) of three rows, a gap [3, 5), [5, 8) of one row."""
    root = tmp_path / "log"
    chain(root, [(3, [scored(origin(0)), scored(origin(1)), failed(origin(2))])])
    writer = local_log(root)
    position = writer.end(CARS)
    assert position is not None
    position = writer.publish(CARS, position, 5, [], gap="retention").position
    writer.publish(CARS, position, 8, [scored(origin(6))])
    return root


def _json(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(text)
    return tree


@pytest.mark.parametrize("deep", [False, True])
def test_the_json_report_has_what_its_documentation_says(nap: Call, log: Path, deep: bool) -> None:
    store = LocalStore(log)
    paths = [segment_path(CARS, base) for base in (0, 3)]
    store.replace(paths[0], merged_segments(store, paths))
    store.remove(paths[1:])
    end = local_log(log).end(CARS)
    assert end is not None

    ended = nap("verify", "--log", log, "--json", *(["--deep"] if deep else []))

    assert ended.exit_code == 0
    tree = _json(ended.out)
    assert tree.pop("created_time_ms") > 1_700_000_000_000
    assert tree == {
        "kind": "nap-stream verify report",
        "version": 1,
        "program_version": nap_stream.__version__,
        "log": str(log),
        "topic": None,
        "deep": deep,
        "against_broker": False,
        "clean": True,
        "counts": {
            "partitions": 1,
            "segments": 3,
            "rows": 4,
            "offsets": 6,
            "gap_offsets": 2,
            "compacted_files": 1,
            "defects": 0,
            "pruned_rows": 0,
            "pruned_segments": 0,
        },
        "chains": [
            {
                "topic": "cars",
                "partition": 0,
                "start_offset": 0,
                "end_offset": 8,
                "sha256": end.previous_sha256,
                "topic_id": None,
            }
        ],
        "gaps": [{"file": paths[0], "base_offset": 3, "end_offset": 5, "reason": "retention"}],
        "pruned": [],
        "compacted": [{"file": paths[0], "base_offset": 0, "end_offset": 5, "segments": 2}],
        "defects": [],
        "broker": None,
        "kept": None,
        "events": None,
        "kept_events": None,
        "anchors": None,
    }


def test_nothing_to_verify_is_an_error_that_says_what_is_there(nap: Call, log: Path) -> None:
    ended = nap("verify", "--log", log, "--topic", "car")
    assert (ended.exit_code, ended.out) == (2, "")
    assert "no partition of the topic 'car'; its topics are cars" in ended.err
    ended = nap("verify", "--log", log / "topic=cars", "--deep", "--json")
    assert (ended.exit_code, ended.out) == (2, "")
    assert "there is no chain here; the root holds partition=0" in ended.err


def test_a_kept_report_shows_that_all_chains_are_gone(nap: Call, log: Path, tmp_path: Path) -> None:
    kept, after = tmp_path / "kept.json", tmp_path / "after.json"
    assert nap("verify", "--log", log, "--report", kept).exit_code == 0
    shutil.rmtree(log / "topic=cars")
    for topic in ([], ["--topic", "cars"]):
        ended = nap("verify", "--log", log, "--kept", kept, *topic, "--json", "--report", after)
        assert ended.exit_code == 1
        tree = _json(ended.out)
        assert tree == _json(after.read_text(encoding="utf-8"))
        assert (tree["clean"], tree["counts"]["partitions"]) == (False, 0)
        assert [found["kind"] for found in tree["defects"]] == ["kept_digest"]
        after.unlink()


@pytest.mark.kafka
def test_a_broker_shows_that_all_chains_are_gone(nap: Call, site: "Site") -> None:
    arguments = ("verify", "--config", site.config, "--against-broker", "--json")
    ended = nap(*arguments)
    assert (ended.exit_code, ended.out) == (2, "")
    site.commit({1: 3})
    ended = nap(*arguments)
    assert ended.exit_code == 1
    assert [found["kind"] for found in _json(ended.out)["defects"]] == ["chain_missing"]


def test_a_report_file_stands_beside_the_text(nap: Call, log: Path, tmp_path: Path) -> None:
    (log / segment_path(CARS, 3)).unlink()
    report = tmp_path / "reports" / "audit.json"
    report.parent.mkdir()
    report.write_text("older", encoding="utf-8")

    ended = nap("verify", "--log", log, "--report", report)

    assert ended.exit_code == 1
    assert ended.out.splitlines()[-1] == "2 defects"
    tree = _json(report.read_text(encoding="utf-8"))
    assert [defect["kind"] for defect in tree["defects"]] == ["hole", "previous_hash"]
    assert (tree["clean"], tree["counts"]["defects"]) == (False, 2)
    assert list(report.parent.iterdir()) == [report]


def test_the_ends_of_a_kept_report_are_looked_for(nap: Call, log: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    assert nap("verify", "--log", log, "--report", kept).exit_code == 0
    assert nap("verify", "--log", log, "--deep", "--kept", kept).exit_code == 0
    (log / segment_path(CARS, 5)).unlink()
    assert nap("verify", "--log", log, "--deep").exit_code == 0
    ended = nap("verify", "--log", log, "--kept", kept, "--json")
    assert ended.exit_code == 1
    tree = _json(ended.out)
    assert [found["kind"] for found in tree["defects"]] == ["kept_digest"]
    assert [(one["partition"], one["end_offset"]) for one in tree["kept"]] == [(0, 8)]
    other = TopicPartition("cars", 1)
    local_log(log).begin(other, 0)
    told = nap("verify", "--log", log, "--kept", kept).out
    assert "kept    cars/0: compared at 8\nkept    cars/1: is not in it\n" in told
    chain(log, [(1, [])], TopicPartition("dogs", 0))
    ended = nap("verify", "--log", log, "--kept", kept, "--topic", "dogs")
    assert ended.exit_code == 2
    assert "has no chain of the topic 'dogs'; its topics are cars" in ended.err
    for mistaken in (tmp_path / "none.json", log / segment_path(CARS, 0)):
        assert nap("verify", "--log", log, "--kept", mistaken).exit_code == 2


def test_events_are_verified_and_their_end_is_kept(nap: Call, log: Path, tmp_path: Path) -> None:
    kept, store = tmp_path / "kept.json", LocalStore(log)
    acknowledged = Event(time_ms=0, kind="acknowledged", by="Ann", data={})
    first, last = (append_event(store, replace(acknowledged, time_ms=n)) for n in range(2))
    assert f"events  2 events {last.sha256}\n" in nap("verify", "--log", log).out
    assert nap("verify", "--log", log, "--report", kept).exit_code == 0
    append_event(store, acknowledged)
    ended = nap("verify", "--log", log, "--kept", kept, "--json")
    assert (ended.exit_code, _json(ended.out)["kept_events"]["count"]) == (0, 2)
    (log / event_path(2)).unlink()
    (log / event_path(1)).unlink()
    ended = nap("verify", "--log", log, "--kept", kept, "--topic", "cars")
    assert ended.exit_code == 1
    assert "kept    events: compared at 2\n" in ended.out
    assert f"defect  {event_path(1)}: kept_digest: " in ended.out
    (log / event_path(0)).write_bytes(b"{}")
    (log / "_events" / "x.json").write_bytes(b"{}")
    tree = _json(nap("verify", "--log", log, "--json").out)
    assert [(one["file"], one["kind"]) for one in tree["defects"]] == [
        (event_path(0), "unreadable"),
        ("_events/x.json", "stray_file"),
    ]
    assert tree["events"]["count"] == 1
    assert tree["events"]["sha256"] != first.sha256


def test_a_report_that_cannot_be_written_is_a_mistake_of_use(
    nap: Call, log: Path, tmp_path: Path
) -> None:
    ended = nap("verify", "--log", log, "--report", tmp_path / "none" / "audit.json")
    assert (ended.exit_code, ended.out) == (2, "")
    assert "no such folder" in ended.err
    ended = nap("verify", "--log", log, "--report", tmp_path)
    assert ended.exit_code == 2
    assert "the file cannot be written (Is a directory)" in ended.err


def test_against_the_broker_needs_a_configuration(nap: Call, log: Path) -> None:
    ended = nap("verify", "--log", log, "--against-broker")
    assert ended.exit_code == 2
    assert "expected --config FILE with --against-broker" in ended.err


class Site:
    """A topic of three partitions with four messages each, and a monitor's log of it."""

    def __init__(self, folder: Path, settings: KafkaSettings) -> None:
        self.settings = settings
        self.config = folder / "monitor.yaml"
        self.log = local_log(folder / "log")
        text = MONITOR.format(
            topic=settings.topic,
            group=settings.group_id,
            servers=settings.bootstrap_servers[0],
            folder=Path(__file__).parents[2],
        )
        self.config.write_text(text, encoding="utf-8")
        (folder / "log").mkdir()
        (folder / "calibration").mkdir()
        for number in range(3):
            send(settings, [b"x"] * 4, partition=number)

    def partition(self, number: int) -> TopicPartition:
        return TopicPartition(self.settings.topic, number)

    def chain(self, number: int, end: int, *, topic_id: str | None = None) -> None:
        where = self.partition(number)
        self.log.publish(where, self.log.begin(where, 0, topic_id), end, [])

    def commit(self, offsets: dict[int, int]) -> None:
        # A broker that is new has no coordinator at once; to ask for offsets waits for it.
        assert committed_offsets(self.settings) == {}
        with administering(self.settings.bootstrap_servers) as admin:
            admin.alter_group_offsets(
                self.settings.group_id,
                {
                    KafkaPartition(self.settings.topic, number): OffsetAndMetadata(offset, "", -1)
                    for number, offset in offsets.items()
                },
            )


@pytest.fixture
def site(apache_kafka: ApacheKafka, tmp_path: Path) -> Site:
    return Site(tmp_path, new_settings(apache_kafka.bootstrap, partitions=3))


@pytest.mark.kafka
def test_against_a_broker_that_agrees(nap: Call, site: Site) -> None:
    topic_id = offsets_of(site.settings, {}, [site.settings.topic])[0].topic_id
    assert topic_id is not None
    for number, end in enumerate((4, 3, 2)):
        site.chain(number, end, topic_id=topic_id)
    site.commit({0: 4, 1: 1})
    delete_before(site.settings, 3, partition=2)

    ended = nap("verify", "--config", site.config, "--against-broker")

    assert (ended.exit_code, ended.out.splitlines()[-1]) == (0, "clean"), ended
    name = site.settings.topic
    assert f"broker  {name}/0: [0, 4), committed 4, the chain is 0 behind" in ended.out
    assert f"broker  {name}/1: [0, 4), committed 1, the chain is 1 behind" in ended.out
    assert f"broker  {name}/2: [3, 4), committed nothing, the chain is 2 behind" in ended.out
    assert "the 1 offsets from the chain's end at 2 on: a gap is to come" in ended.out


@pytest.mark.kafka
def test_all_topics_of_a_monitor_are_compared(nap: Call, site: Site) -> None:
    first, other = site.settings.topic, f"{site.settings.topic}-other"
    create_topics(site.settings, [other], 1)
    send(site.settings, [b"x"] * 2, topic=other)
    for number in range(3):
        site.chain(number, 4)
    where = TopicPartition(other, 0)
    site.log.publish(where, site.log.begin(where, 0), 2, [])
    text = site.config.read_text(encoding="utf-8")

    def verified(reads: str, *options: str) -> tuple[int, str]:
        changed = text.replace(f"topic: {first}", f"topic: all, {reads}")
        site.config.write_text(changed, encoding="utf-8")
        ended = nap("verify", "--config", site.config, "--against-broker", *options)
        return ended.exit_code, ended.out

    exit_code, out = verified(f'topic_pattern: "{first}.*"')
    assert (exit_code, out.splitlines()[-1]) == (0, "clean")
    assert f"broker  {first}/2: [0, 4), committed nothing, the chain is 0 behind" in out
    assert f"broker  {other}/0: [0, 2), committed nothing, the chain is 0 behind" in out

    exit_code, out = verified(f"topics: [{first}, {other}, away]")
    assert exit_code == 1
    assert "broker  not compared: topic away: the broker has none of the name" in out
    assert f"broker  {other}/0: [0, 2)" in out

    exit_code, out = verified(f"topics: [{first}, {other}]", "--topic", other)
    assert (exit_code, out.splitlines()[-1]) == (0, "clean")
    assert f"broker  {first}/" not in out

    site.log.publish(where, site.log.end(where) or site.log.begin(where, 0), 3, [])
    exit_code, out = verified(f"topics: [{first}, {other}]")
    assert exit_code == 1
    assert f"topic={other}/partition=0" in out


@pytest.mark.kafka
def test_what_a_broker_retains_is_no_gap_and_not_before_a_chain(nap: Call, site: Site) -> None:
    topic_id = offsets_of(site.settings, {}, [site.settings.topic])[0].topic_id
    for number, (start, reason) in enumerate([(0, "retention"), (2, None), (0, "retention")]):
        where = site.partition(number)
        position = site.log.begin(where, start, topic_id)
        site.log.publish(where, position, 3, [], gap=reason)
    delete_before(site.settings, 3, partition=2)

    ended = nap("verify", "--config", site.config, "--against-broker", "--json")

    assert ended.exit_code == 1
    defects = [(defect["kind"], defect["detail"]) for defect in _json(ended.out)["defects"]]
    assert [kind for kind, _ in defects] == [DefectKind.GAP_RETAINED, DefectKind.START_RETAINED]
    assert "offsets [0, 3) are declared missing (retention)" in defects[0][1]
    assert "the chain starts at 2, and the broker has offsets from 0 on" in defects[1][1]
    text = site.config.read_text(encoding="utf-8").replace("kafka: {", "kafka: {start: latest, ")
    site.config.write_text(text, encoding="utf-8")
    told = nap("verify", "--config", site.config, "--against-broker").out
    assert "it has 2 offsets from before the chain's start at 2, which are in no segment" in told
    assert "start_retained" not in told


@pytest.mark.kafka
def test_against_a_broker_that_disagrees(nap: Call, site: Site) -> None:
    site.chain(0, 5, topic_id="of another topic")
    site.chain(1, 2)
    site.commit({1: 3, 2: 4})

    ended = nap("verify", "--config", site.config, "--against-broker", "--json")

    assert ended.exit_code == 1
    tree = _json(ended.out)
    assert [(defect["kind"], defect["file"][-1]) for defect in tree["defects"]] == [
        (DefectKind.BEYOND_BROKER, "0"),
        (DefectKind.TOPIC_ID, "0"),
        (DefectKind.BEHIND_COMMITTED, "1"),
        (DefectKind.CHAIN_MISSING, "n"),
    ]
    assert tree["broker"]["group_id"] == site.settings.group_id
    assert tree["broker"]["partitions"][1] == {
        "partition": 1,
        "earliest": 0,
        "end": 4,
        "committed": 3,
        "topic_id": offsets_of(site.settings, {}, [site.settings.topic])[0].topic_id,
        "chain_start": 0,
        "chain_end": 2,
        "lag": 2,
        "gap_to_come": 0,
        "before_chain": 0,
    }


@pytest.mark.kafka
def test_offsets_of_a_topic_and_a_group_that_nobody_uses(apache_kafka: ApacheKafka) -> None:
    settings = new_settings(apache_kafka.bootstrap)
    assert committed_offsets(settings) == {}
    (found,) = offsets_of(settings, {}, [settings.topic])
    partition = TopicPartition(settings.topic, 0)
    assert found == PartitionOffsets(partition, 0, 0, None, found.topic_id)
    gone = settings.model_copy(update={"topic": f"{settings.topic}-gone"})
    with pytest.raises(TopicNotFoundError, match="no such topic"):
        offsets_of(gone, {}, [gone.topic])
    create_topics(settings, [gone.topic])
    assert offsets_of(gone, {}, [gone.topic])[0].topic_id != found.topic_id


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_an_error(nap: Call, site: Site) -> None:
    ended = nap(
        "verify", "--config", site.config, "--against-broker", "--topic", "nobody-made-this"
    )
    assert (ended.exit_code, ended.out) == (1, "")
    assert "no such topic: nobody-made-this" in ended.err
