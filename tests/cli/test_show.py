"""`nap-stream show` on a log that a real line has written, with real JPEGs."""

import base64
import io
import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from kafka import KafkaProducer
from PIL import Image
from rich.style import Style

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import Calibration
from nap_stream.cli.show import _absent, half_blocks
from nap_stream.clock import SystemClock
from nap_stream.core.conformal import Rule
from nap_stream.core.hidden_keys import HiddenKeys, Stored
from nap_stream.core.panes import key_text
from nap_stream.errors import ChainBrokenError, ConfigError, FeatureMapError
from nap_stream.feed import on_cpu
from nap_stream.kafka.client import connect
from nap_stream.model.load import load_model
from nap_stream.monitor.worker import Threads, open_line
from nap_stream.pipeline.commits import WorkerCounters
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import Event, append_event, read_events
from nap_stream.scored_log.format import SCORE_COLUMNS, segment_path
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import KafkaSettings, LimitSettings, ScoringSettings
from nap_stream.show import alerts_of, find_image, find_row, scores_of
from nap_stream.show_again import nap_picture
from tests.cli.program import Call
from tests.scored_log.builders import CARS, local_log, origin, scored
from tests.source.test_peek import send
from tests.support.baseline_calibrations import with_baseline
from tests.support.doubles import MemoryDeadLetters, MemorySource, MemoryTopic
from tests.support.image_bytes import ARROW_HEADERS, arrow_stream, jpeg
from tests.support.log_files import run_query
from tests.support.memory_store import MemoryStore
from tests.support.shared_data import shared_data
from tests.support.small_calibration import calibration_of, write_calibrated, write_images
from tests.support.small_settings import CPU, load_small
from tests.support.told import Told
from tests.support.topics import PATIENT_PRODUCER, new_settings
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.data
MODEL = {
    "factory": "tests.support.small_models:by_name",
    "kwargs": {"name": "SmallNet"},
    "preprocessing": {"resize": 8, "crop": 8},
    "precision": "float32",
    "channels_last": False,
}
_SPAN = {"partition": 0, "start": 0, "end": 9}
KEY = b"camera-7\x1b[31m"
"""A key that would turn a terminal red."""


@dataclass(frozen=True)
class Monitored:
    """A log, its evidence, and the configuration; ``files`` by (offset, index)."""

    folder: Path
    files: dict[tuple[int, int], bytes]
    rows: list[dict[str, Any]]

    @property
    def config(self) -> Path:
        return self.folder / "monitor.yaml"

    @property
    def flagged(self) -> dict[str, Any]:
        return next(row for row in self.rows if row["is_ood"] and row["offset"] > 3)

    @property
    def unflagged(self) -> dict[str, Any]:
        return next(row for row in self.rows if row["is_ood"] is False and row["offset"] > 3)

    def evidence_of(self, row: dict[str, Any]) -> Path:
        day = row["scored_time"].strftime("%Y-%m-%d")
        return Path(self.folder, "evidence", day, row["sha256"])


def address(row: dict[str, Any], topic: str = "images") -> str:
    return f"{topic}/0/{row['offset']}/{row['index']}"


def monitored(
    folder: Path,
    topic: str = "images",
    servers: str = "127.0.0.1:1",
    *,
    log: str = "log",
    key: bytes = KEY,
    topic_id: str | None = "topic-0",
    told: Told | None = None,
    keys: dict[str, str] | None = None,
    **sections: dict[str, Any],
) -> Monitored:
    """Ten CIFAR images and ten textures one a message, then three in one, and what is no image."""
    held = write_images(folder / "held-out", 60)
    scoring = ScoringSettings(method="fisher-energy")
    write_calibrated(folder / "calibration", held, rule=Rule(0.3), scoring=scoring)
    config = {
        "kafka": {"bootstrap_servers": [servers], "topic": topic, "connect_timeout_s": 1},
        "model": MODEL,
        "scoring": {"method": "fisher-energy"},
        "calibration": "calibration",
        "log": {"root": log, **({} if keys is None else {"keys": keys})},
        "evidence": {"root": "evidence", "sample": 0, "extremes_per_hour": 0},
        **sections,
    }
    (folder / "monitor.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings = load_settings(folder / "monitor.yaml", {})
    names = ("cifar10_test", "textures_dtd5")
    tables = (pq.read_table(shared_data(f"{name}.parquet"), columns=["image"]) for name in names)
    images = [image for table in tables for image in table["image"][:13].to_pylist()]
    stream, partition = MemoryTopic(topic, topic_id=topic_id), TopicPartition(topic, 0)
    singles, batch = images[:10] + images[13:23], images[10:13]
    files = {(number, 0): image for number, image in enumerate(singles)}
    files |= {(len(singles), index): image for index, image in enumerate(batch)}
    for number, image in enumerate(singles):
        stream.append(partition, image, timestamp_ms=1_780_000_000_000 + number, key=key)
    stream.append(partition, arrow_stream({"image": batch}), headers=ARROW_HEADERS)
    stream.append(partition, b"no image")

    calibration, clock = load_calibration(settings.calibration), SystemClock()
    loaded = load_model(settings.model, CPU, calibration.document.execution)
    with open_line(
        settings,
        loaded,
        calibration,
        threads=Threads(1, 1, 1),
        open_source=lambda listener: MemorySource(stream, listener, clock=clock),
        dead_letters=MemoryDeadLetters(),
        reporter=told or Told(),
        counters=WorkerCounters("worker-0", 0),
        writer_id="worker-0",
        clock=clock,
    ) as line:
        line.run(lambda: stream.committed.get(partition) == len(singles) + 2, PATIENCE_S)
    rows = run_query(LocalStore(folder / log), Query(topic=topic)).to_pylist()
    return Monitored(folder, files, rows)


def send_all(kafka: KafkaSettings, made: Monitored, changed: Mapping[int, bytes] = {}) -> None:
    """Send the messages of `monitored`, each in a batch of its own; some ``changed``."""
    values = {offset: made.files[offset, 0] for offset in range(20)}
    values[20] = arrow_stream({"image": [made.files[20, index] for index in range(3)]})
    values[21] = b"no image"
    servers = list(kafka.bootstrap_servers)
    with closing(KafkaProducer(bootstrap_servers=servers, **PATIENT_PRODUCER)) as producer:
        for offset, value in sorted({**values, **changed}.items()):
            headers = list(ARROW_HEADERS) if offset == 20 else []
            sent = producer.send(kafka.topic, value=value, headers=headers)
            sent.get(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("monitored"))


def test_exactly_the_flagged_images_are_kept(made: Monitored) -> None:
    flagged = {row["sha256"] for row in made.rows if row["is_ood"]}
    assert 0 < len(flagged) < len(made.files)
    assert {path.name for path in (made.folder / "evidence").rglob("*") if path.is_file()} == (
        flagged
    )


def test_a_row_is_shown_with_its_picture_and_what_decided_it(
    nap: Call, made: Monitored, tmp_path: Path
) -> None:
    row, out = made.flagged, tmp_path / "picture.png"

    ended = nap("show", address(row), "--config", made.config, "--out", out)

    assert ended.exit_code == 0
    told = ended.out.splitlines()[0]
    assert told.startswith(f"{address(row)}  {row['class_name']}, ")
    assert told.endswith(f"flagged: p {row['ood_p_value']:.4g}, alpha 0.3")
    assert f"image  {made.evidence_of(row)}" in ended.out
    assert "\x1b" not in ended.out + ended.err
    assert "camera-7\\x1b[31m" in ended.out
    file = made.files[row["offset"], row["index"]]
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(Image.open(out)).astype(int) - expected).max() <= 1
    for name, value in row.items():
        if value is not None:
            assert name in ended.out


def test_scores_are_set_against_the_calibrations_images(nap: Call, made: Monitored) -> None:
    row, calibration = made.flagged, load_calibration(made.folder / "calibration")

    ended = nap("show", address(row), "--config", made.config, "--format", "json")

    shown = json.loads(ended.out)
    assert shown["alpha"] == 0.3
    scores = {score.pop("score"): score for score in shown["scores"]}
    for name, column in (("energy", "energy"), ("msp", "confidence"), ("nap", "nap")):
        assert scores[name]["value"] == row[column]
        held = calibration.values[name].astype(float)
        assert scores[name]["at_most"] == np.mean(held <= row[column])
    assert {score["against"] for score in scores.values()} == {
        f"calibration, n = {calibration.size}"
    }
    assert scores["fused"]["at_most"] == np.mean(calibration.arrays["score"] <= row["fused"])
    terms = [scores[name] for name in ("energy", "nap")]
    assert sum(t["weight"] * np.log(t["p_value"]) for t in terms) == pytest.approx(row["fused"])
    assert sum(term["share"] for term in terms) == pytest.approx(1)
    assert next(iter(scores)) == max(("energy", "nap"), key=lambda name: scores[name]["share"])
    assert scores["msp"]["share"] is None
    places = [(near["offset"], near["index"]) for near in shown["neighbours"]]
    here = row["offset"]
    assert places == [(offset, 0) for offset in range(here - 3, here + 4)]


def test_neighbours_at_the_ends_are_those_that_there_are(nap: Call, made: Monitored) -> None:
    """The last message is no image; three of one message stand before it."""
    ended = nap("show", "images/0/21", "--config", made.config, "--format", "json")
    shown = json.loads(ended.out)
    places = [(near["offset"], near["index"]) for near in shown["neighbours"]]
    assert places == [(20, 0), (20, 1), (20, 2), (21, 0)]
    assert shown["image"]["found"] is False
    assert "could not be read: not a" in shown["image"]["looked"][0]
    assert shown["scores"] == []


def test_an_image_that_is_gone_is_said_with_the_places_that_were_looked_at(
    nap: Call, made: Monitored, tmp_path: Path
) -> None:
    row, out = made.unflagged, tmp_path / "picture.png"

    ended = nap("show", address(row), "--config", made.config, "--out", out)
    beside = nap("show", address(row), "--log", made.folder / "log")

    assert (ended.exit_code, beside.exit_code) == (1, 0)
    assert not out.exists()
    assert f"there is no {made.evidence_of(row)}" in ended.out
    assert re.search(r"Kafka: .*127\.0\.0\.1:1", ended.out)
    assert "evidence: no root is given" in beside.out
    assert "Kafka: no --config is given" in beside.out
    assert "set against a calibration: none is given" in beside.err + beside.out


def test_a_calibration_that_is_named_is_to_be_there(nap: Call, made: Monitored) -> None:
    ended = nap(
        "show", address(made.flagged), "--log", made.folder / "log", "--calibration", "none"
    )
    assert (ended.exit_code, ended.out) == (1, "")
    assert "none: there is no calibration" in ended.err


def test_evidence_that_was_changed_is_named_and_not_shown(
    nap: Call, made: Monitored, tmp_path: Path
) -> None:
    row = made.flagged
    path = made.evidence_of(row)
    kept, out = path.read_bytes(), tmp_path / "picture.png"
    try:
        path.write_bytes(kept[:-1])
        ended = nap("show", address(row), "--config", made.config, "--out", out)
    finally:
        path.write_bytes(kept)
    assert ended.exit_code == 1
    assert "the file is not the image that its name says: it has the SHA-256" in ended.out
    assert not out.exists()


def test_a_row_is_scored_again_to_the_same_values(
    nap: Call, made: Monitored, tmp_path: Path
) -> None:
    row, where = made.flagged, tmp_path / "where.png"
    options = ("--config", made.config, "--format", "json", "--rescore", "--map", where)

    ended = nap("show", address(row), *options)

    compared = json.loads(ended.out)["rescored"]
    assert [one["name"] for one in compared[:2]] == ["model_fingerprint", "calibration_fingerprint"]
    for one in compared:
        if one["grown_by"] is None:
            assert one["logged"] == one["now"]
        else:
            assert one["now"] == pytest.approx(one["logged"], rel=1e-5)
    assert {"class_id", "is_ood", "ood_p_value", "nap"} <= {one["name"] for one in compared}
    picture = np.asarray(Image.open(where)).astype(int)
    assert picture.shape == (256, 256, 3)
    # Red where it is strong: somewhere, and not all over.
    redness = picture[..., 0] - picture[..., 2]
    assert redness.max() > 100
    assert redness.min() < 30


def test_another_calibration_and_another_model_are_told(
    nap: Call, made: Monitored, tmp_path: Path
) -> None:
    row = made.flagged
    other = write_calibrated(
        tmp_path / "other",
        made.folder / "held-out",
        rule=Rule(0.2),
        scoring=ScoringSettings(method="fisher-energy"),
    )

    options = ("--config", made.config, "--calibration", other, "--rescore")
    ended = nap("show", address(row), *options, "--format", "json")

    shown = json.loads(ended.out)
    assert "this row was judged by" in shown["notes"][0]
    assert {score["at_most"] for score in shown["scores"]} == {None}
    assert len(shown["notes"]) == 1
    fingerprint = shown["rescored"][1]
    assert fingerprint["logged"] != fingerprint["now"]

    config = yaml.safe_load(made.config.read_text())
    config["model"]["kwargs"]["seed"] = 1
    changed = made.folder / "changed.yaml"
    changed.write_text(yaml.safe_dump(config))
    ended = nap("show", address(row), "--config", changed, "--rescore")
    assert ended.exit_code == 1
    assert "the calibration was made with model" in ended.err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("image/0/4", "the log has no topic 'image'; it has images"),
        ("images/1/4", "the log has no partition '1'; it has 0"),
        ("images/0/22", "the log of images/0 holds the offsets from 0 to 21"),
        ("images/0/4/1", "the message has 1 images, 0 to 0"),
        ("images/0/20", "the message has 3 images, 0 to 2"),
        ("images/0/20/3", "the message has 3 images, 0 to 2"),
        ("images/0", "expected TOPIC/PARTITION/OFFSET[/INDEX]"),
        ("c0ffee", "no such alert; of 0 in the log, near: none"),
        ("images/0/-1", "expected TOPIC/PARTITION/OFFSET[/INDEX]"),
        ("images/0/٤", "expected TOPIC/PARTITION/OFFSET[/INDEX]"),
    ],
)
def test_a_mistyped_address_is_told_what_there_is(
    nap: Call, made: Monitored, wrong: str, told: str
) -> None:
    ended = nap("show", wrong, "--config", made.config)
    assert ended.exit_code == 2
    assert wrong in ended.err
    assert told in ended.err


def test_scores_are_set_against_what_judged_the_row_and_it_is_named() -> None:
    """Fused are 8, 1, 6, 4 of the classes 0, 1, 0, 1, and 5 of the row: 2 of 4 are no higher."""
    row = dict.fromkeys(SCORE_COLUMNS) | {"class_id": 1, "class_name": "dog"}
    row |= {"energy": 9.0, "nap": 2.0, "fused": 5.0}
    options: dict[str, Any] = {"energy": [16, 1, 9, 4], "nap": [4, 1, 4, 4]}

    def fused(calibration: Calibration) -> tuple[Any, Any]:
        (found,) = (each for each in scores_of(row, calibration) if each["score"] == "fused")
        return found["at_most"], found["against"]

    calibration = calibration_of(**options, alpha=0.4)
    assert fused(calibration) == (0.5, "calibration, n = 4")
    per_class = Rule(0.5, per_class=True)
    of_class = calibration_of(**options, rule=per_class, class_id=[0, 1, 0, 1])
    assert fused(of_class) == (1.0, "calibration, class dog, n = 2")
    baseline = with_baseline(calibration, np.array([1.0, 2.0, 3.0, 4.0, 9.0]))
    assert fused(baseline) == (0.8, "baseline, n = 5 records")
    others = {each["score"]: each["at_most"] for each in scores_of(row, baseline)}
    assert others == {"energy": None, "nap": None, "fused": 0.8}
    (told,) = _absent(scores_of(row, baseline), baseline)
    assert told.endswith("the baseline holds no values of energy, nap")


@pytest.mark.parametrize(
    ("key_by", "of_key", "of_other"),
    [
        ("key", key_text(b"\xff" * 9), "5"),
        ("key", key_text(b"\xff" * 9), "base64:" + base64.b64encode(b"\xff" * 9).decode()),
        ("header:line", "5", key_text(b"\xff" * 9)),
        ("header:line", "5", "4"),
    ],
)
def test_alerts_that_reach_over_the_row_are_shown(key_by: str, of_key: str, of_other: str) -> None:
    """Its key is no text; of two headers "line" the last one counts."""
    store, offset = MemoryStore(), 7
    headers = [{"name": "line", "value": b"4"}, {"name": "line", "value": b"5"}]
    scored_time = datetime.fromtimestamp(2, UTC)
    row: dict[str, Any] = {"topic": "images", "partition": 0, "offset": offset, "index": 0}
    row |= {"key": b"\xff" * 9, "headers": headers, "scored_time": scored_time}

    def add(kind: str, data: dict[str, Any], by: str = "run", time_ms: int = 1) -> None:
        append_event(store, Event(time_ms=time_ms, kind=kind, by=by, topic="images", data=data))

    def alert(name: str, key: str | None, start: int, end: int, topic: str = "images") -> None:
        span = _SPAN | {"start": start, "end": end}
        data = {"topic": topic, "key": key, "state": "firing", "offsets": [span], "summary": name}
        add("alert", {"event": {"id": name, "data": data}})

    def shown() -> list[str] | None:
        found = alerts_of(store, row, [])
        return None if found is None else [each["id"] for each in found]

    assert shown() is None
    add("run-started", {}, time_ms=2_001)
    assert shown() is None
    add("run-started", {"settings": {"drift": {"keys": {"by": key_by}}}})
    add("run-started", {"settings": {"drift": {"keys": {"by": "header:other"}}}}, by="other")
    alert("before it", None, 0, offset)
    alert("of another key", of_other, 0, offset + 1)
    alert("of another topic", None, 0, offset + 1, topic="other")
    add("alert", {"event": {"data": {}}})
    add("run-stopped", {})
    assert not shown()
    alert("of the stream", None, offset, offset + 1)
    alert("of the key", of_key, 0, offset + 1)
    several = {"topic": "all", "offsets": [{"topic": "images"} | _SPAN]}
    add("alert", {"event": {"id": "of several topics", "data": several}})
    assert shown() == ["of the stream", "of the key", "of several topics"]


def test_alerts_that_nobody_recorded_are_said_not_to_be(nap: Call, made: Monitored) -> None:
    assert "not recorded" in nap("show", address(made.flagged), "--config", made.config).out


def test_where_nothing_was_kept_the_image_is_read_from_kafka(
    nap: Call, broker: str, tmp_path: Path
) -> None:
    """A message of many images too; and one that holds another image now is told by its digest."""
    kafka = new_settings(broker)
    made = monitored(tmp_path, kafka.topic, broker)
    values = [made.files[number, 0] for number in range(20)]
    values[5], values[6] = values[6], values[5]
    send(kafka, values)
    connect(kafka)
    for path in (tmp_path / "evidence").rglob("*"):
        if path.is_file():
            path.unlink()
    rows = {row["offset"]: row for row in made.rows}

    def show(offset: int) -> Any:
        place = f"{kafka.topic}/0/{offset}/0"
        options = ("--config", made.config, "--format", "json")
        return json.loads(nap("show", place, *options).out)["image"]

    assert show(4) == {"found": True, "where": f"Kafka, {kafka.topic}/0@4", "looked": []}
    wrong = show(5)
    assert wrong["found"] is False
    assert f"another image, of the SHA-256 {rows[6]['sha256']}" in wrong["looked"][1]
    gone = show(20)
    assert "the topic has no such message: it holds the offsets from 0 to 19" in gone["looked"][1]


@pytest.mark.parametrize("network", ["ClsNet", "TwoViewsNet", "MeanTokenNet"])
def test_there_is_no_picture_of_what_has_no_rows_and_columns(network: str) -> None:
    with pytest.raises(FeatureMapError, match="no rows and columns"):
        nap_picture(jpeg(), load_small(network), LimitSettings())


@pytest.mark.parametrize(
    "network", ["SmallNet", "FlattenNet", "ChannelsLastFlattenNet", "InPlaceNet"]
)
def test_the_picture_is_as_red_as_the_parts_of_nap_are_large(network: str) -> None:
    """The map of these networks is as large as their input: 8 x 8, of 32 x 32 pixels each."""
    loaded = load_small(network)
    picture = nap_picture(jpeg(), loaded, LimitSettings()).astype(int)
    red = (picture[..., 0] - picture[..., 2]).reshape(8, 32, 8, 32).mean(axis=(1, 3))

    seen = on_cpu(jpeg(), LimitSettings(), loaded.preprocessing)
    assert isinstance(seen, torch.Tensor)
    parts = np.zeros((8, 8))
    with torch.inference_mode():
        images = loaded.normalise(seen[None], torch.contiguous_format)
        maps = loaded.module.features(images)[0].relu().numpy()  # type: ignore[operator]
    for channel in maps:
        place = np.unravel_index(channel.argmax(), channel.shape)
        parts[place] += (channel.max() / (channel.mean() + 1)) ** 2
    np.testing.assert_allclose(red, 0.7 * 255 * parts / parts.max(), atol=1.5)


def test_two_pixels_stand_in_each_character_of_a_terminal() -> None:
    red, blue = (255, 0, 0), (0, 0, 255)
    pixels = np.array([[red, red], [blue, blue], [blue, red], [red, blue]], np.uint8)
    text = half_blocks(pixels, 10)
    assert text.plain == "▀▀\n▀▀\n"
    styles = [(str(span.style), text.plain[span.start]) for span in text.spans]
    on = [Style.parse("#ff0000 on #0000ff"), Style.parse("#0000ff on #ff0000")]
    assert styles == [(str(on[n]), "▀") for n in (0, 0, 1, 0)]
    assert half_blocks(np.zeros((1, 1000, 3), np.uint8), 48).plain == "▀" * 48 + "\n"


@pytest.mark.parametrize("data", [{}, {"examples": []}, {"examples": [{"partition": "\x1b"}]}])
def test_an_alert_without_an_example_has_no_image(data: dict[str, Any]) -> None:
    store = MemoryStore()
    event = {"event": {"id": "c0ffee00", "data": data}}
    append_event(store, Event(time_ms=0, kind="alert", by="a", topic="images", data=event))
    with pytest.raises(ConfigError, match="c0ffee00: the alert names no image as an example"):
        find_row(store, "c0ffee", [])


def test_an_example_is_looked_for_in_its_own_topic() -> None:
    store = MemoryStore()
    store.create(segment_path(CARS, 0), b"")
    one = {"topic": "north", "partition": 0, "offset": 3, "index": 0}
    for n, example in enumerate((one, {**one, "topic": None})):
        event = {"event": {"id": f"c0ffee0{n}", "data": {"topic": "all", "examples": [example]}}}
        append_event(store, Event(time_ms=n, kind="alert", by="a", topic="all", data=event))
    for name, topic in (("c0ffee00", "north"), ("c0ffee01", "all")):
        with pytest.raises(ConfigError) as found:
            find_row(store, name, [])
        assert found.value.where == f"{topic}/0/3/0"


def test_erased_are_the_images_of_a_key_and_not_their_rows(nap: Call, tmp_path: Path) -> None:
    """The last message has three images, and no key."""
    made, store = monitored(tmp_path), LocalStore(tmp_path / "log")
    of_key = {row["sha256"] for row in made.rows if row["key"] == KEY and row["is_ood"]}
    others = {row["sha256"] for row in made.rows if row["key"] is None and row["is_ood"]}
    (row,) = (row for row in made.rows if row["sha256"] == min(of_key))
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "log").rglob("*.parquet"))
    why = ("--by", "A. Auditor", "--reason", "request 8")

    one = nap("erase", "--config", made.config, "--sha256", row["sha256"], *why)
    rest = nap("erase", "--config", made.config, "--key", KEY.decode(), *why)
    again = nap("erase", "--config", made.config, "--sha256", row["sha256"], *why)

    keyed = {row["sha256"] for row in made.rows if row["key"] == KEY}
    assert "1 files erased, of 1 images" in one.out
    assert f"{len(of_key) - 1} files erased, of {len(keyed)} images" in rest.out
    assert (one.exit_code, rest.exit_code, again.exit_code) == (0, 0, 1)
    assert f"nothing erased: {tmp_path / 'evidence'} holds none of the 1 images" in again.out
    left = {path.name for path in (tmp_path / "evidence").rglob("*") if path.is_file()}
    assert left == others
    assert sorted((p, p.read_bytes()) for p in (tmp_path / "log").rglob("*.parquet")) == before
    events = list(read_events(store))
    assert [(event.kind, event.data.get("asked"), event.data.get("files")) for event in events] == [
        *(("erasing", None, None), ("erased", 0, 1)),
        *(("erasing", None, None), ("erased", 2, len(of_key) - 1)),
        *(("erasing", None, None), ("erased", 4, 0)),
    ]
    assert {event.by for event in events} == {"A. Auditor"}
    assert set(events[2].data["sha256"]) == keyed
    assert "camera" not in json.dumps(events[2].data)
    told = nap("history", "--log", tmp_path / "log").out
    assert f"1 images, of {tmp_path / 'evidence'}: request 8" in told
    assert "no files were there of what event 4 names" in told
    shown = nap("show", address(row), "--config", made.config)
    assert "it was not chosen, or is erased" in shown.out


def test_a_worker_hides_keys_and_whoever_has_the_secret_finds_them(
    nap: Call, tmp_path: Path
) -> None:
    """What the coordinator is told is all that alerts, metrics and /healthz can show."""
    told, hidden = Told(), HiddenKeys(Stored.HASHED, secret=b"0123456789abcdef")
    (tmp_path / "secret").write_bytes(hidden.secret)
    keys = {"key": "hashed", "secret_file": "secret"}
    made = monitored(tmp_path, told=told, keys=keys, drift={"keys": {"by": "key"}})
    hashed = hidden.hashed(KEY)
    assert {row["key"] for row in made.rows} == {hashed, None}
    assert {key for each in told.summaries for key in each.panes.keys} == {hashed.decode(), ""}
    assert "camera-7" not in repr((told.summaries, told.reports))
    of_key = {row["sha256"] for row in made.rows if row["key"] == hashed}
    why = ("--by", "A. Auditor", "--reason", "request 8")
    erased = nap("erase", "--config", made.config, "--key", KEY.decode(), *why)
    assert f"of {len(of_key)} images" in erased.out
    shown = nap("show", address(made.flagged), "--config", made.config)
    assert hashed.decode() in shown.out
    assert "camera-7" not in shown.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--key", "camera-8"), "the log has no key 'camera-8'"),
        (("--sha256", "12"), "expected 64 hex digits"),
        ((), "expected --evidence or evidence.root, and --sha256 or --key"),
        (("--key", KEY.decode(), "--evidence", "evidnce"), "evidnce: no evidence is there"),
        (("--key", KEY.decode(), "--evidence", "tests"), "tests: no evidence is there"),
        (("--key", KEY.decode(), "--by", " "), "--by: expected 1 to 200 printable characters"),
        (("--key", KEY.decode(), "--reason", "\x1b[2J"), "printable characters"),
    ],
)
def test_nothing_is_erased_of_what_is_mistyped(
    nap: Call, made: Monitored, options: tuple[str, ...], told: str
) -> None:
    ended = nap("erase", "--config", made.config, "--by", "A. Auditor", *options)
    assert ended.exit_code == 2
    assert told in ended.err
    assert made.evidence_of(made.flagged).exists()
    kinds = {event.kind for event in read_events(LocalStore(made.folder / "log"))}
    assert not kinds & {"erasing", "erased"}


def test_nothing_is_erased_that_cannot_be_written_down(nap: Call, tmp_path: Path) -> None:
    """A file stands where the events would."""
    made = monitored(tmp_path)
    (tmp_path / "log" / "_events").write_bytes(b"")
    options = ("--sha256", made.flagged["sha256"], "--by", "A. Auditor")
    ended = nap("erase", "--config", made.config, *options)
    assert ended.exit_code != 0
    assert "_events" in ended.err
    assert made.evidence_of(made.flagged).exists()


def test_a_row_is_shown_beside_a_segment_that_cannot_be_read(nap: Call, tmp_path: Path) -> None:
    log = local_log(tmp_path, "worker-0")
    position = log.begin(CARS, 0)
    for offset in range(3):
        rows = [scored(origin(offset))]
        position = log.publish(CARS, position, offset + 1, rows).position
    (tmp_path / segment_path(CARS, 0)).write_bytes(b"no Parquet")

    ended = nap("show", "cars/0/1", "--log", tmp_path, "--format", "json")
    broken = nap("show", "cars/0/0", "--log", tmp_path)

    shown = json.loads(ended.out)
    assert [near["offset"] for near in shown["neighbours"]] == [1, 2]
    assert segment_path(CARS, 0) in shown["notes"][1]
    assert broken.exit_code == 1
    assert segment_path(CARS, 0) in broken.err


class Spoiled(LocalStore):
    """Files hold something else after they have been opened so many times."""

    def __init__(self, root: Path, opens: int) -> None:
        super().__init__(root)
        self.opens = opens

    def open(self, path: str) -> BinaryIO | None:
        self.opens -= 1
        return super().open(path) if self.opens >= 0 else io.BytesIO(b"no Parquet")


def test_a_row_whose_file_is_spoiled_meanwhile_stands_alone(tmp_path: Path) -> None:
    log = local_log(tmp_path, "worker-0")
    rows = [scored(origin(offset)) for offset in range(3)]
    log.publish(CARS, log.begin(CARS, 0), 3, rows)
    seen = set()
    for opens in range(9):
        unread: list[ChainBrokenError] = []
        try:
            row, neighbours = find_row(Spoiled(tmp_path, opens), "cars/0/1", unread)
        except ChainBrokenError:
            seen.add((0, 0))
        else:
            assert row in neighbours
            seen.add((len(neighbours), len(unread)))
    assert seen == {(0, 0), (1, 1), (3, 0)}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"format": "outputs", "status": "ok"}, "of a model's outputs: no image was sent"),
        ({"format": None, "status": "tombstone", "error": "the value is null"}, "value is null"),
    ],
)
def test_rows_that_never_had_an_image_say_so(row: dict[str, Any], told: str) -> None:
    found = find_image({"sha256": None, "error": None, **row}, None, None)
    assert found.data is None
    assert told in found.looked[0]
