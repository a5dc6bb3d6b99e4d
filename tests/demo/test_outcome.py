from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nap_stream.demo.digits import BROKEN
from nap_stream.demo.outcome import (
    AlertSeen,
    LoggedImage,
    Outcome,
    check_outcome,
    read_alert,
    read_images,
)
from nap_stream.records import TopicPartition
from nap_stream.scored_log.verify.report import Defect, DefectKind, VerifyReport
from nap_stream.text import rfc3339
from tests.scored_log.builders import NOON_MS, chain, failed, origin, scored

CHANGED_MS = 1_767_268_810_000
RETURNED_MS = CHANGED_MS + 5_000


def alert(state: str, time_ms: int, key: str | None = None) -> Mapping[str, Any]:
    reason = {"firing": "began", "resolved": "ended"}[state]
    data = {"state": state, "reason": reason, "key": key}
    return {"time": rfc3339(time_ms), "data": data}


def logged(number: int) -> LoggedImage:
    return LoggedImage(
        number % 2, number // 2, f"{number}.png", "digit", "c", 0, "ok", is_ood=False
    )


def report(*defects: Defect) -> VerifyReport:
    return VerifyReport(
        partitions=2,
        segments=2,
        rows=4,
        offsets=4,
        gap_offsets=0,
        gaps=(),
        heads=(),
        defects=defects,
    )


GOOD = Outcome(
    alerts=[
        alert("firing", CHANGED_MS + 900),
        alert("resolved", RETURNED_MS + 3_000),
        *(alert("firing", CHANGED_MS + 950, camera) for camera in BROKEN),
        *(alert("resolved", RETURNED_MS + 950, camera) for camera in BROKEN),
    ],
    changed_ms=CHANGED_MS,
    returned_ms=RETURNED_MS,
    sent=[f"{number}.png" for number in range(4)],
    logged=[logged(number) for number in range(4)],
    report=report(),
    exit_code=0,
)


def failures(outcome: Outcome) -> list[str]:
    return [check.claim for check in check_outcome(outcome) if not check.holds]


def test_all_holds_where_all_went_well() -> None:
    assert failures(GOOD) == []
    assert [check.found for check in check_outcome(GOOD)[1:3]] == [
        "1: +0.9 s from the change",
        "1: +3.0 s from the return",
    ]


FIRING, RESOLVED, *OF_CAMERAS = GOOD.alerts
CAMERAS_NAMED = "exactly camera-2 and camera-5 are named, each once, and resolved"
NO_EARLY = "no alert before the change"
ONE_FIRING = "exactly one firing, after the change"
ONE_RESOLVED = "exactly one resolved, after the return"
NO_OTHERS = "no other message in the alert topic"


@pytest.mark.parametrize(
    ("alerts", "expected"),
    [
        pytest.param([], [ONE_FIRING, ONE_RESOLVED], id="none"),
        pytest.param([FIRING], [ONE_RESOLVED], id="never resolved"),
        pytest.param([RESOLVED], [ONE_FIRING], id="never fired"),
        pytest.param([FIRING, FIRING, RESOLVED], [ONE_FIRING], id="fired twice"),
        pytest.param([FIRING, RESOLVED, RESOLVED], [ONE_RESOLVED], id="resolved twice"),
        pytest.param(
            [alert("firing", CHANGED_MS), RESOLVED], [NO_EARLY, ONE_FIRING], id="fired too early"
        ),
        pytest.param(
            [alert("firing", CHANGED_MS - 2_000), alert("resolved", CHANGED_MS - 1_000)],
            [NO_EARLY, ONE_FIRING, ONE_RESOLVED],
            id="a false alarm alone",
        ),
        pytest.param(
            [alert("firing", CHANGED_MS - 2_000), FIRING, RESOLVED],
            [NO_EARLY, ONE_FIRING],
            id="a false alarm before",
        ),
        pytest.param(
            [FIRING, alert("resolved", RETURNED_MS)], [ONE_RESOLVED], id="resolved too early"
        ),
        pytest.param(
            [FIRING, RESOLVED, {"data": {"state": "not JSON"}}],
            [NO_EARLY, NO_OTHERS],
            id="a foreign message",
        ),
    ],
)
def test_alerts_that_are_wrong(alerts: list[Mapping[str, Any]], expected: list[str]) -> None:
    assert failures(replace(GOOD, alerts=[*alerts, *OF_CAMERAS])) == expected


def test_a_severity_that_grows_is_no_second_alert() -> None:
    worse = {"time": FIRING["time"], "data": {**FIRING["data"], "reason": "escalated"}}
    assert failures(replace(GOOD, alerts=[*GOOD.alerts, worse])) == []


@pytest.mark.parametrize(
    "of_cameras",
    [
        pytest.param(OF_CAMERAS[:3], id="one is not resolved"),
        pytest.param(OF_CAMERAS[::2], id="one is not named"),
        pytest.param([*OF_CAMERAS, OF_CAMERAS[0]], id="one is named twice"),
        pytest.param(
            [*OF_CAMERAS, alert("firing", CHANGED_MS + 1, "camera-1")], id="a healthy one is named"
        ),
    ],
)
def test_cameras_that_are_wrong(of_cameras: list[Mapping[str, Any]]) -> None:
    assert failures(replace(GOOD, alerts=[FIRING, RESOLVED, *of_cameras])) == [CAMERAS_NAMED]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(GOOD.logged[:3], id="a row is missing"),
        pytest.param([*GOOD.logged, GOOD.logged[0]], id="a row is doubled"),
        pytest.param(
            [*GOOD.logged[:3], replace(GOOD.logged[3], name="0.png")], id="one image for another"
        ),
        pytest.param(
            [*GOOD.logged[:3], replace(GOOD.logged[3], partition=0, offset=0)],
            id="an offset is doubled",
        ),
    ],
)
def test_rows_that_are_wrong(rows: list[LoggedImage]) -> None:
    assert failures(replace(GOOD, logged=rows)) == [
        "one row for each image that was sent, and for each offset"
    ]


def test_an_image_that_was_not_scored() -> None:
    rows = [*GOOD.logged[:3], replace(GOOD.logged[3], status="corrupt", is_ood=None)]

    assert failures(replace(GOOD, logged=rows)) == ["every image was decoded and scored"]


def test_a_defect_of_the_log_is_named() -> None:
    defective = replace(GOOD, report=report(Defect("a/b.parquet", DefectKind.HOLE, "lost [3, 5)")))

    assert failures(defective) == ["the log verifies clean"]
    assert "a/b.parquet: hole: lost [3, 5)" in check_outcome(defective)[-2].found


def test_a_monitor_that_ends_badly() -> None:
    assert failures(replace(GOOD, exit_code=1)) == ["the monitor ended in good order"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({}, AlertSeen("None", "None", None, None)),
        (
            {"time": "soon", "data": {"state": "firing", "key": "a"}},
            AlertSeen("firing", "None", "a", None),
        ),
        ({"time": rfc3339(5), "data": "firing"}, AlertSeen("None", "None", None, 5)),
    ],
)
def test_events_are_read_as_far_as_they_can_be(
    event: Mapping[str, Any], expected: AlertSeen
) -> None:
    assert read_alert(event) == expected


def test_reads_all_rows_of_the_topic_in_order_of_event_time(tmp_path: Path) -> None:
    digits = [TopicPartition("digits", number) for number in (0, 1)]
    headers: tuple[tuple[str, bytes | None], ...] = (("other", b"x"), ("camera", b"c2"))
    late = origin(
        0, partition=digits[0], event_time_ms=NOON_MS + 20, key=b"photo/a.png", headers=headers
    )
    early = origin(0, partition=digits[1], event_time_ms=NOON_MS + 10, key=None)
    chain(tmp_path, [(1, [scored(late, p_value=0.01)])], digits[0])
    chain(tmp_path, [(1, [failed(early)])], digits[1])
    chain(tmp_path, [(1, [scored(origin(0))])], TopicPartition("cars", 0))

    assert read_images(tmp_path, "digits") == [
        LoggedImage(1, 0, "", "", "", NOON_MS + 10, "corrupt", None),
        LoggedImage(0, 0, "photo/a.png", "photo", "c2", NOON_MS + 20, "ok", True),
    ]
