"""nap-stream history, ack: who did what, when, and what was done about an alert."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nap_stream.cli.events import as_table
from nap_stream.records import Acceptance
from nap_stream.scored_log.acceptances import write_acceptance
from nap_stream.scored_log.events import Event, EventKind, append_event, event_path, read_events
from nap_stream.scored_log.history import MAX_COMMENT, entries
from nap_stream.scored_log.output import OutputFormat, write_batches
from nap_stream.scored_log.stores.local import LocalStore
from tests.cli.program import Call
from tests.scored_log.builders import NOON_MS, chain

DAY_MS = 86_400_000
IDS = ("3f2a90c1d2e4" + "0" * 20, "3f2a11111111" + "0" * 20, "b" * 32)


def start(
    day: float, by: str, window: int, topic: str = "cars", more: dict[str, Any] | None = None
) -> Event:
    drift = {"window_records": window, "keys": {"by": "key"} if window == 500 else None}
    data = {
        "version": "1.2",
        "user": "ops",
        "settings": {"drift": drift, "kafka": {"sasl_password": "**********"}, **(more or {})},
        "settings_sha256": f"{window:064}",
        "model_fingerprint": "a1" * 32,
        "calibration_fingerprint": "b2" * 32,
        "bound": 20 / window,
    }
    return at(day, EventKind.RUN_STARTED, f"coordinator@{by}", data, topic)


def at(day: float, kind: str, by: str, data: dict[str, Any], topic: str = "cars") -> Event:
    time_ms = NOON_MS + round(day * DAY_MS)
    return Event(time_ms=time_ms, kind=kind, by=by, topic=topic, monitor="ood-fraction", data=data)


def alert(day: float, name: str, state: str, summary: str) -> Event:
    tree = {"id": name, "type": f"io.nap-stream.drift.{state}", "data": {"summary": summary}}
    return at(day, EventKind.ALERT, "coordinator@a:1:x", {"event": tree})


ENDED = {"reason": "stopped", "rows_by_status": {"ok": 1200}}
STORY = (
    start(0, "a:1:x", 500),
    alert(0.5, IDS[0], "firing", "23 of 500 flagged\x1b[31m"),
    alert(0.6, IDS[1], "resolved", "it is over"),
    start(1, "b:2:y", 500),
    at(1.5, EventKind.RUN_STOPPED, "coordinator@b:2:y", ENDED),
    start(2, "c:3:z", 400, more={"worker": {"count": 2}}),
    start(3, "d:4:w", 400, topic="trucks"),
    at(3, EventKind.ALERT, "coordinator@d:4:w", {"event": {"id": 5}}, "trucks"),
)  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    store = LocalStore(tmp_path / "log")
    for event in STORY:
        append_event(store, event)
    made = Acceptance(0, "cars", "camera-7", NOON_MS, NOON_MS, NOON_MS + 4 * DAY_MS, "Ann", "moved")
    write_acceptance(store, made)
    return tmp_path / "log"


def told(log: Path) -> list[tuple[str, str]]:
    return [(each.kind, each.what) for each in entries(list(read_events(LocalStore(log))))]


def test_the_story_of_a_log(log: Path) -> None:
    begins = "version 1.2 by ops, bound {}, model a1a1a1a1, calibration b2b2b2b2"
    assert told(log) == [
        ("run-started", begins.format(0.04) + "; it died: no end is written"),
        ("alert", "firing 3f2a90c1d2e4: 23 of 500 flagged [31m"),
        ("alert", "resolved 3f2a11111111: it is over"),
        ("run-started", begins.format(0.04) + "; nothing was changed"),
        ("run-stopped", "stopped, 1,200 rows"),
        ("run-started", begins.format(0.05) + "; it runs, or died"),
        ("changed", "drift.window_records: 500 → 400"),
        ("changed", 'drift.keys.by: "key" → not set'),
        ("changed", "bound: 0.04 → 0.05"),
        ("changed", "drift.keys: not set → null"),
        ("changed", "worker.count: not set → 2"),
        ("run-started", begins.format(0.05) + "; it runs, or died"),
        ("alert", "None : None"),
        ("accepted", "camera-7 as it is since 2026-01-01 12:00:00 UTC: moved"),
    ]  # fmt: skip


def test_who_changed_the_bound_has_an_answer(log: Path, nap: Call) -> None:
    span = ("--since", "2026-01-02T13:00Z", "--until", "2026-01-04T00:00Z")
    ended = nap("history", "--log", log, *span, "--kind", "changed", "--format", "csv")
    assert ended.exit_code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert {(row["time"], row["by"]) for row in rows} == {
        ("2026-01-03T12:00:00.000Z", "coordinator@c:3:z")
    }
    assert "bound: 0.04 → 0.05" in [row["what"] for row in rows]
    ended = nap("history", "--log", log, "--topic", "trucks", "--format", "json")
    row, _ = map(json.loads, ended.out.splitlines())
    assert (row["number"], row["topic"], row["kind"]) == (6, "trucks", "run-started")
    assert nap("history", "--log", log, "--until", "2025-01-01T00:00Z").err == "No event matches.\n"


def test_what_cannot_be(log: Path, tmp_path: Path, nap: Call) -> None:
    ended = nap("history", "--log", log, "--topic", "boats")
    assert (ended.exit_code, "There are cars, trucks" in ended.err) == (2, True)
    ended = nap("history", "--log", log, "--kind", "chnaged")
    assert (ended.exit_code, "no such kind: 'chnaged'" in ended.err) == (2, True)
    (tmp_path / "empty").mkdir()
    ended = nap("history", "--log", tmp_path / "empty")
    assert (ended.exit_code, "there are neither events nor rows" in ended.err) == (2, True)
    chain(tmp_path / "old", [(1, [])])
    assert nap("history", "--log", tmp_path / "old").err == "The log has no events.\n"
    (log / event_path(2)).write_bytes(b"{}")
    ended = nap("history", "--log", log)
    assert ended.exit_code == 3
    assert f"defect  {event_path(2)}: unreadable" in ended.err
    assert "23 of 500 flagged" in ended.out
    assert "camera-7" in ended.out


def test_a_table_fits_80_columns_and_leaves_nothing_out(log: Path) -> None:
    found = list(entries(list(read_events(LocalStore(log)))))
    found[0] = replace(found[0], kind="acknowledged", time_ms=found[0].time_ms + 7)
    table = as_table(found, for_people=True, width=80)
    output = io.BytesIO()
    write_batches(table.schema, iter(table.to_batches()), OutputFormat.TABLE, output, width=80)
    lines = output.getvalue().decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line or "\x1b" in line for line in lines)
    begin = lines[0].index("what")
    shown = "".join(line[begin:].strip() for line in lines)
    for entry in found:
        told = (
            f"{entry.topic}/ood-fraction: {entry.what}" if entry.kind != "accepted" else entry.what
        )
        assert told.replace(" ", "") in shown.replace(" ", "")


def test_an_alert_is_acknowledged_by_its_id_or_its_beginning(log: Path, nap: Call) -> None:
    text = ("--by", "Ann", "--comment", "lens cleaned")
    ended = nap("ack", "3f2a90c1", "--log", log, *text)
    assert (ended.exit_code, ended.out) == (0, f"acknowledged as event 9: alert {IDS[0]}\n")
    ended = nap("ack", IDS[0], "--log", log, "--by", "Bob", "--comment", "again")
    assert ended.out.splitlines()[0] == f"acknowledged as event 10: alert {IDS[0]}"
    assert "It was before, by Ann at " in ended.out.splitlines()[1]
    assert ended.out.endswith("UTC: lens cleaned\n")
    last = list(read_events(LocalStore(log)))[-1]
    assert (last.kind, last.by, last.topic, last.monitor) == (
        *("acknowledged", "Bob", "cars", "ood-fraction"),
    )
    assert last.data == {"alert": IDS[0], "comment": "again"}
    assert told(log)[-1] == ("acknowledged", "alert 3f2a90c1d2e4: again")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3f2a", ("2 alerts begin so", IDS[0], IDS[1], "it is over")),
        ("3f2", ("2 alerts begin so",)),
        ("3f2a90c1d2e5" + "0" * 20, ("no such alert; of 2 in the log, near", IDS[0], "firing")),
        ("zz\x1b[31m", ("no such alert", IDS[1])),
        ("", ("2 alerts begin so",)),
    ],
)
def test_an_unknown_alert_is_refused_with_those_that_are_near(
    log: Path, nap: Call, given: str, expected: tuple[str, ...]
) -> None:
    ended = nap("ack", given, "--log", log, "--by", "Ann", "--comment", "x")
    assert ended.exit_code == 2
    assert all(part in ended.err for part in expected), ended.err
    assert "\x1b" not in ended.err.replace("\x1b[1;31merror:\x1b[0m", "")
    assert len(list(read_events(LocalStore(log)))) == 9


@pytest.mark.parametrize(
    ("option", "text"),
    [("--by", " "), ("--by", "x" * 201), ("--comment", ""), ("--comment", "x" * (MAX_COMMENT + 1)),
     ("--comment", "a\nb")],
)  # fmt: skip
def test_texts_are_checked(log: Path, nap: Call, option: str, text: str) -> None:
    texts = {"--by": "Ann", "--comment": "x", option: text}
    ended = nap("ack", IDS[0], "--log", log, *[part for pair in texts.items() for part in pair])
    assert ended.exit_code == 2
    assert f"{option}: expected 1 to" in ended.err


def test_data_that_nobody_wrote_so_is_shown_all_the_same() -> None:
    """Events come from outside: any JSON may stand where a word is looked for."""
    odd: list[Any] = [None, 5, "x", [], {"a": [1]}, True]
    for kind in (*EventKind, "later-kind"):
        for value in odd:
            names = ("settings", "event", "alert", "rows_by_status", "from_ms", "key", "bound")
            event = at(0, kind, "x", dict.fromkeys(names, value))
            assert all(isinstance(each.what, str) for each in entries([event, event]))
            table = as_table(list(entries([event, event])), for_people=True, width=80)
            assert table.num_rows >= 2
