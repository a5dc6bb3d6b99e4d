"""The twenty questions of docs/audit.md: each is one command, run as it stands there.

The month is that of `tests.report.month`, of the topic ``bottles``, beside a topic of real images
that a real line has scored and of which evidence was kept. Answers are compared with the rows as
pyarrow reads them, and with what was written.
"""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image
from scipy.stats import binomtest

from nap_stream.calibration.artifact import load_calibration
from nap_stream.records import TopicPartition
from nap_stream.scored_log.events import Event, append_event, read_events
from nap_stream.scored_log.query import Query
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.verify.run import verify
from tests.cli.program import Call, Ended
from tests.cli.test_show import Monitored, address, monitored, send_all
from tests.report.month import (
    CALIBRATIONS,
    DRIFT,
    MODELS,
    OUTAGE,
    TOPIC,
    at,
    write_events,
    write_rows,
)
from tests.support.log_files import run_query
from tests.support.topics import new_settings

pytestmark = [pytest.mark.data, pytest.mark.xdist_group("questions")]
DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
ALERT = "c0ffee00c0ffee00"
KEY = "person-17"


@dataclass(frozen=True)
class Month:
    """The folder in which the commands run, its rows, and the images of its second topic."""

    folder: Path
    rows: list[dict[str, Any]]
    made: Monitored

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["topic"] == topic]

    def scored(self, first: int = 0, end: int = 2**63) -> list[dict[str, Any]]:
        """Those of the month itself that have scores, of event times in a span."""
        return [
            row
            for row in self.of(TOPIC)
            if row["is_ood"] is not None and first <= _ms(row["event_time"]) < end
        ]


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _questions() -> list[tuple[str, str]]:
    """Number and command of each row of the documented table."""
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("<!-- questions -->") : text.index("<!-- end of questions -->")]
    return re.findall(r"^\| (\d+) \| [^|]* \| `([^`]*)` \|", table, re.MULTILINE)


def _alert(row: dict[str, Any]) -> Event:
    """An alert of which a flagged row is the example."""
    place = {name: row[name] for name in ("partition", "offset", "index")}
    spans = [{"partition": 0, "start": 0, "end": 30}]
    data: dict[str, Any] = {
        "state": "firing",
        "severity": "warning",
        "summary": "2 of 25",
        "topic": "images",
    }
    data |= {"key": None, "offsets": spans, "examples": [place]}
    event = {"id": ALERT, "type": "io.nap-stream.drift.firing", "time": "2026-05-28T21:00:00Z"}
    return Event(
        time_ms=at("28T21:00"),
        kind="alert",
        by="coordinator-4",
        topic="images",
        monitor="line-5",
        data={"event": {**event, "data": data}},
    )


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    folder = tmp_path_factory.mktemp("audit")
    made = monitored(folder, log="scored-log", key=KEY.encode())
    store = LocalStore(folder / "scored-log")
    write_rows(store)
    write_events(store)
    append_event(store, _alert(made.flagged))
    keys = pa.schema([("topic", pa.string()), ("partition", pa.int32())])
    log = ds.dataset(
        store.root, format="parquet", partitioning=ds.partitioning(keys, flavor="hive")
    )
    return Month(folder, log.to_table().to_pylist(), made)


@pytest.fixture(scope="module")
def answers() -> dict[str, Ended]:
    """What was answered to commands that stand there more than once."""
    return {}


@pytest.fixture
def ask(
    nap: Call, month: Month, answers: dict[str, Ended], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Run the commands of a question in the month's folder, or a copy of it; give the last one."""
    monkeypatch.chdir(month.folder)
    words = {
        "ROW": address(month.made.flagged),
        "ALERT": ALERT[:8],
        "SHA256": month.made.unflagged["sha256"],
    }

    def run(number: str, place: int = 0) -> Ended:
        command = [command for each, command in _questions() if each == number][place]
        if command not in answers:
            program, *options = shlex.split(command)
            assert program == "nap-stream"
            answers[command] = nap(*(words.get(option, option) for option in options))
        return answers[command]

    return run


def _lines(ended: Ended) -> list[dict[str, Any]]:
    assert ended.exit_code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def _page(name: str) -> str:
    """The text of a page, each run of blanks one."""
    return " ".join(re.sub("<[^>]*>", " ", Path(name).read_text(encoding="utf-8")).split())


def test_each_question_has_its_command() -> None:
    assert {int(number) for number, _ in _questions()} == set(range(1, 21))


def test_1_the_most_anomalous_images_are_pictures(ask: Callable[..., Ended], month: Month) -> None:
    assert ask("1").exit_code == 0
    page = Path("week.html").read_text(encoding="utf-8")
    rows = [row for row in month.of("images") if row["is_ood"] is not None]
    rows.sort(key=lambda row: (row["ood_p_value"], row["offset"], row["index"]))
    places = re.findall(r'alt="Image ([^",]*), predicted', page)
    flagged = [address(row) for row in rows[:12] if row["is_ood"]]
    assert len(flagged) >= 10
    assert places == flagged
    assert page.count("data:image/") >= 10


def test_2_what_decided_a_row(ask: Callable[..., Ended], month: Month) -> None:
    row = json.loads(ask("2").out)["row"]
    calibration = load_calibration(month.folder / "calibration")
    assert row["model_fingerprint"] == calibration.document.model.fingerprint
    assert row["calibration_fingerprint"] == calibration.fingerprint


def test_3_a_row_is_scored_again(ask: Callable[..., Ended], month: Month) -> None:
    ended = ask("3")
    assert ended.exit_code == 0, ended.err
    again = {each["name"]: each for each in json.loads(ended.out)["rescored"]}
    row = month.made.flagged
    assert again["ood_p_value"]["logged"] == pytest.approx(row["ood_p_value"])
    assert again["ood_p_value"]["now"] == pytest.approx(row["ood_p_value"], rel=1e-4)


def test_4_who_changed_the_configuration(ask: Callable[..., Ended]) -> None:
    (last, *_) = [each for each in _lines(ask("4")) if "window_records" in each["what"]]
    assert (last["by"], last["time"]) == ("coordinator-3", "2026-05-16T12:00:00.000Z")
    assert "500 → 600" in last["what"]
    changed = " ".join(each["what"] for each in _lines(ask("4")))
    assert all(f"{MODELS[0][:6]}" in changed and each[:6] in changed for each in MODELS)


def test_5_was_monitoring_always_on(ask: Callable[..., Ended], month: Month) -> None:
    assert ask("5").exit_code == 0
    page = _page("may.html")
    asked = page[page.index("Was monitoring always on?") :]
    assert asked.startswith("Was monitoring always on? No No monitor is known to have run for 6 h")
    assert "from 2026-05-12 03:00 to 2026-05-12 09:00" in asked
    assert not month.scored(*OUTAGE)


def test_6_what_was_dropped(ask: Callable[..., Ended], month: Month) -> None:
    ask("6")
    page = _page("may.html")
    corrupt = sum(row["status"] == "corrupt" for row in month.of(TOPIC))
    assert corrupt > 50
    assert f"corrupt damaged: it cannot be decoded {corrupt} " in page
    assert re.search(r"\.parquet \d+ to \d+ 40 retention deleted them", page)


def test_7_and_8_alerts_and_what_was_done(ask: Callable[..., Ended]) -> None:
    alerts = _lines(ask("7"))
    assert [each["alert"] for each in alerts] == [
        *("gap-1", "drift-1", "key-1", "drift-2", "drift-3", "key-2", "bad-1", ALERT),
    ]
    assert alerts[1]["time"] == "2026-05-20T14:00:00.000Z"
    assert "camera-5 contributes most" in alerts[1]["what"]
    acknowledged, accepted = _lines(ask("8"))
    assert (acknowledged["alert"], acknowledged["by"]) == ("drift-1", "Ada Moreno")
    assert "Lens fogged; cleaned" in acknowledged["what"]
    assert accepted["kind"] == "accepted"
    assert "camera-5" in accepted["what"]
    assert "New lamp" in accepted["what"]


def test_9_an_export_is_proved(ask: Callable[..., Ended], nap: Call, month: Month) -> None:
    Path("keys.txt").write_text(nap("checkpoint-key", "--out", "signing.key", "--name", "a").out)
    export = ("--export", "may-31", "--sign-with", "signing.key")
    wanted = ("--topic", TOPIC, "--key", "camera-5", "--day", "2026-05-20", "--ood")
    assert nap("query", "--log", "scored-log", *wanted, *export).exit_code == 0
    ended = ask("9")
    rows = [
        row
        for row in month.scored(at("20T00:00"), at("21T00:00"))
        if row["is_ood"] and row["key"] == b"camera-5"
    ]
    assert ended.exit_code == 0, ended.err
    assert f"rows    {len(rows)}: {len(rows)} ok" in ended.out
    path = Path("may-31/rows.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert nap("verify-export", "may-31", "--keys", "keys.txt").exit_code == 1


def test_10_a_report(ask: Callable[..., Ended], month: Month) -> None:
    ask("10")
    flagged, scored = sum(row["is_ood"] for row in month.scored()), len(month.scored())
    assert f"{flagged} of {scored:,} (" in _page("may.html")


def test_11_two_weeks_and_two_models(ask: Callable[..., Ended], month: Month) -> None:
    assert (ask("11").exit_code, ask("11", 1).exit_code) == (0, 0)
    spans = (("17T00:00", "24T00:00"), ("03T00:00", "10T00:00"))
    weeks = [month.scored(at(first), at(end)) for first, end in spans]
    models = [[r for r in month.scored() if r["model_fingerprint"] == m] for m in MODELS[::-1]]
    for name, (second, first) in (("weeks.html", weeks), ("models.html", models)):
        shares = [100 * np.mean([row["is_ood"] for row in rows]) for rows in (first, second)]
        found = re.search(
            r"Flagged, of scored images ([\d.]+) % ([\d.]+) % ([+-][\d.]+) points "
            r"([+-][\d.]+) to ([+-][\d.]+)",
            _page(name),
        )
        assert found is not None
        one, other, change, low, high = map(float, found.groups())
        assert [one, other] == pytest.approx(shares, rel=0.01)
        assert change == pytest.approx(shares[1] - shares[0], abs=0.01)
        # The week of the drift, and the model of it, flagged more.
        assert low < change < high
        assert change > 0


def test_12_by_camera_and_day(ask: Callable[..., Ended], month: Month) -> None:
    found = {(each["key"], each["day"][:10]): each for each in _lines(ask("12"))}
    assert len(found) == 6 * 30
    for (key, day), each in list(found.items())[::17]:
        own = [
            row["is_ood"]
            for row in month.scored()
            if row["key"] == key.encode() and row["event_time"].strftime("%Y-%m-%d") == day
        ]
        assert (each["scored"], each["ood"]) == (len(own), sum(own))
        interval = binomtest(sum(own), len(own)).proportion_ci(method="wilson")
        assert (each["ood_low"], each["ood_high"]) == pytest.approx((interval.low, interval.high))
    drifting = found["camera-5", datetime.fromtimestamp(DRIFT[0] / 1000, UTC).strftime("%Y-%m-%d")]
    assert drifting["ood_low"] > 0.1


def test_13_a_person_is_deleted(
    ask: Callable[..., Ended],
    month: Month,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(month.folder, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    own = {row["sha256"] for row in month.of("images") if row["key"] == KEY.encode()}
    before = {path.name for path in (copy / "evidence").rglob("*") if path.is_file()}
    ended = ask("13")
    after = {path.name for path in (copy / "evidence").rglob("*") if path.is_file()}
    assert ended.exit_code == 0, ended.err
    assert before & own
    assert after == before - own
    asked, done = list(read_events(LocalStore(copy / "scored-log")))[-2:]
    assert (asked.kind, asked.by, asked.data["reason"]) == ("erasing", "A. Auditor", "request 8")
    assert (done.kind, done.data["files"]) == ("erased", len(before & own))


def test_14_retention(
    ask: Callable[..., Ended], month: Month, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(month.folder, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    ended = ask("14")
    assert ended.exit_code == 0, ended.err
    store = LocalStore(copy / "scored-log")
    report = verify(store, topic="bottles", deep=True)
    assert report.clean, report.defects
    sealed = sum(each.span.rows for each in report.pruned)
    left = run_query(store, Query(topic="bottles"))
    assert sealed + left.num_rows == len(month.of("bottles"))
    before = datetime(2026, 5, 11, tzinfo=UTC)
    # A segment that straddles the moment is kept whole.
    assert 0 < sealed <= sum(row["event_time"] < before for row in month.of("bottles"))
    assert f"pruned {sealed:,} rows" in ended.out


def test_15_a_spreadsheet(ask: Callable[..., Ended], month: Month) -> None:
    assert ask("15").exit_code == 0
    with Path("flagged.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = sorted(
        (row["partition"], row["offset"], row["key"].decode(), row["ood_p_value"])
        for row in month.scored()
        if row["is_ood"]
    )
    assert [
        (int(row["partition"]), int(row["offset"]), row["key"], float(row["ood_p_value"]))
        for row in rows
    ] == expected


def test_16_an_image_of_an_alert(ask: Callable[..., Ended], month: Month) -> None:
    ended = ask("16")
    assert ended.exit_code == 0, ended.err
    row = month.made.flagged
    assert ended.out.startswith(f"{address(row)}  ")
    assert ALERT in ended.out
    shown = np.asarray(Image.open("example.png")).astype(int)
    file = month.folder / "as-sent"
    file.write_bytes(month.made.files[row["offset"], row["index"]])
    sent = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(shown - sent).max() <= 1


def test_17_a_digest_was_seen(ask: Callable[..., Ended], month: Month) -> None:
    found = [(each["topic"], each["offset"], each["index"]) for each in _lines(ask("17"))]
    digest = month.made.unflagged["sha256"]
    assert found == [
        (row["topic"], row["offset"], row["index"]) for row in month.rows if row["sha256"] == digest
    ]
    assert len(found) >= 1


def test_18_how_long_decisions_take(ask: Callable[..., Ended], month: Month) -> None:
    (found,) = _lines(ask("18"))
    took = [_ms(row["scored_time"]) - _ms(row["ingest_time"]) for row in month.of(TOPIC)]
    assert found["ms"] == np.quantile(took, 0.99, method="inverted_cdf")
    ask("5")
    assert re.search(rf"\(decision latency\) \d+ ms {found['ms']} ms", _page("may.html"))


def test_19_the_promise(ask: Callable[..., Ended], month: Month) -> None:
    ask("19")
    page = _page("may.html")
    judged = len(month.scored())
    assert f"It judged {judged:,}." in page
    # One per 30 days at 0.01 images/s; two alerts of drift began.
    assert f"at most T / {round(30 * 86_400 * 0.01):,}" in page
    assert "2 alerts of drift began. " in page


def test_the_month_is_whole_and_has_what_was_asked_for(nap: Call, month: Month) -> None:
    ended = nap("verify", "--log", month.folder / "scored-log", "--deep")
    assert (ended.exit_code, ended.out.splitlines()[-1]) == (0, "clean")
    assert {row["calibration_fingerprint"] for row in month.of(TOPIC)} == set(CALIBRATIONS)
    assert {TopicPartition(row["topic"], row["partition"]) for row in month.rows} == {
        *(TopicPartition(TOPIC, number) for number in (0, 1)),
        TopicPartition("images", 0),
    }


@pytest.mark.embedded
def test_20_the_log_beside_kafka(
    ask: Callable[..., Ended],
    embedded: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kafka = new_settings(embedded)
    made = monitored(tmp_path, kafka.topic, embedded, topic_id=None)
    send_all(kafka, made)
    monkeypatch.chdir(tmp_path)
    ended = ask("20")
    assert (ended.exit_code, ended.out.splitlines()[-1]) == (0, "clean"), ended
    assert "contents 22 messages read, 24 images have the SHA-256 of their rows\n" in ended.out
    assert f"broker  {kafka.topic}/0: [0, 22), " in ended.out
