"""What an alert of blocks says: for a person who knows no statistics first, then why."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from nap_stream.alert.block_words import days, rounded, span
from nap_stream.alert.event import alert_event
from nap_stream.alert.render import render_lines
from nap_stream.alert.webhook import alertmanager_alerts
from nap_stream.alert.words import summary
from nap_stream.core.alert_state import Change, Detector, Firing, Reason, Severity
from nap_stream.core.block_readings import BlockReading, JudgedBy
from nap_stream.core.sequential import Onset
from nap_stream.drift.records import BaselineFacts, BlockFinding, DetectorReading, DriftAlert
from nap_stream.records import Acceptance
from tests.alert.samples import FACTS, KEY_BEGAN, PLAN, SETTINGS, event_tree
from tests.alert.test_event import CLOSED
from tests.support.baselines import baseline_of, cameras


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOON_MS, DAY_MS = at("2026-06-03T14:50"), 86_400_000
SEEN = BlockReading(
    log_statistic=12.5,
    log_threshold=12.5,
    active=True,
    onset_ms=at("2026-06-03T14:20"),
    blocks=3,
    records=900,
    flagged=279,
    statistic="flagged",
    baseline_share=0.0412,
    judged_by=JudgedBy.OWN,
    learned=0,
)
FOUND = BlockFinding(
    reading=SEEN,
    baseline_blocks=1_440,
    block_ms=600_000,
    since_ms=at("2026-05-12T00:00"),
    until_ms=at("2026-05-27T00:00"),
    run_time_ms=30 * DAY_MS,
    confidence=0.95,
    new_keys=20,
    late_risk=0.05 / 3 / 20,
)
ACCEPTED = Acceptance(
    3, "images", "camera-7", at("2026-06-02T10:00"), NOON_MS, NOON_MS - 90_000, "Ann", "a new lens"
)
FIRING = Firing(NOON_MS, SEEN.onset_ms, NOON_MS, (Detector.BLOCKS,), Severity.CRITICAL)
ALERT = replace(
    KEY_BEGAN,
    change=Change(Reason.BEGAN, FIRING),
    time_ms=NOON_MS,
    since=Onset(0, SEEN.onset_ms, SEEN.records, SEEN.flagged),
    readings=(
        DetectorReading(Detector.BLOCKS, True, 259_200.0, 259_200.0, 259.2),
        DetectorReading(Detector.OOD_SEQUENTIAL, True, 6e8, 5e8, 5e5, deciding=False),
    ),
    block=FOUND,
)
BASELINE: BaselineFacts = replace(
    baseline_of(cameras(0, 3_000)),
    since_ms=FOUND.since_ms,
    until_ms=FOUND.until_ms,
    made_ms=at("2026-05-28T09:00"),
)
WITH_BASELINE = replace(FACTS, baseline=BASELINE)


def seen(**changes: Any) -> BlockFinding:
    return replace(FOUND, reading=replace(SEEN, **changes))


def over(reason: Reason, **changes: Any) -> DriftAlert:
    long_ago = replace(FIRING, since_ms=NOON_MS - 3 * 3_600_000)
    return replace(ALERT, change=Change(reason, long_ago), **changes)


@pytest.mark.parametrize(
    ("alert", "sentence"),
    [
        (
            ALERT,
            (
                "camera-7: since 14:20 UTC 31 % of its images look out-of-distribution; 4 % did "
                "in the baseline (12 to 26 May). By chance this happens at most once in 30 days"
            ),
        ),
        (
            replace(ALERT, key=None),
            (
                "Since 14:20 UTC 31 % of all images look out-of-distribution; 4 % did in the "
                "baseline (12 to 26 May). By chance this happens at most once in 30 days"
            ),
        ),
        (
            replace(ALERT, change=Change(Reason.ESCALATED, FIRING, Severity.WARNING)),
            (
                "Now critical: camera-7: since 14:20 UTC 31 % of its images look "
                "out-of-distribution; 4 % did in the baseline (12 to 26 May). By chance this "
                "happens at most once in 30 days"
            ),
        ),
        (
            replace(ALERT, block=seen(statistic="low p-values", flagged=54, baseline_share=0)),
            (
                "camera-7: since 14:20 UTC its images score lower than in the baseline (12 to 26 "
                "May); 6 % of them look out-of-distribution, 0 % did then. By chance this "
                "happens at most once in 30 days"
            ),
        ),
        (
            replace(
                ALERT,
                key=None,
                block=replace(seen(statistic="high p-values", flagged=1), run_time_ms=7_200_000),
            ),
            (
                "Since 14:20 UTC all images score higher than in the baseline (12 to 26 May); "
                "0.1 % of them look out-of-distribution, 4 % did then. By chance this happens at "
                "most once in 2 h"
            ),
        ),
        (
            replace(ALERT, block=seen(judged_by=JudgedBy.LEARNING)),
            (
                "camera-7: since 14:20 UTC 31 % of its images look out-of-distribution; 4 % of the "
                "worst known key's did in the baseline (12 to 26 May). By chance this happens at "
                "most once in 30 days"
            ),
        ),
        (
            replace(ALERT, block=seen(judged_by=JudgedBy.POOLED)),
            (
                "camera-7: since 14:20 UTC 31 % of its images look out-of-distribution; 4 % did "
                "in the baseline (12 to 26 May), by whose worst key it is judged. By chance this "
                "happens at most once in 30 days"
            ),
        ),
        (
            replace(
                ALERT,
                block=seen(judged_by=JudgedBy.LEARNING, statistic="high p-values"),
            ),
            (
                "camera-7: since 14:20 UTC its images score higher than the worst known key's in "
                "the baseline (12 to 26 May); 31 % of them look out-of-distribution, 4 % of that "
                "key's did. By chance this happens at most once in 30 days"
            ),
        ),
        (
            replace(ALERT, block=seen(judged_by=JudgedBy.LEARNED, statistic="low p-values")),
            (
                "camera-7: since 14:20 UTC its images score lower than while it learned; 31 % of "
                "them look out-of-distribution, 4 % did then. By chance this happens at most once "
                "in 30 days"
            ),
        ),
        (
            over(Reason.ENDED, block=seen(judged_by=JudgedBy.LEARNED)),
            "Over after 3 h: camera-7 looks as it did while it learned again",
        ),
        (
            over(Reason.ENDED, block=seen(judged_by=JudgedBy.LEARNING)),
            (
                "Over after 3 h: camera-7 looks no worse than the worst key of the baseline (12 to "
                "26 May)"
            ),
        ),
        (
            over(Reason.ENDED),
            "Over after 3 h: camera-7 looks as in the baseline (12 to 26 May) again",
        ),
        (
            over(Reason.ENDED, key=None),
            "Over after 3 h: the stream looks as in the baseline (12 to 26 May) again",
        ),
        (
            over(Reason.ACCEPTED, acceptance=ACCEPTED),
            (
                "Accepted after 3 h by Ann: a new lens. camera-7 is taken as it is since "
                "2026-06-02 10:00 UTC, and learns a baseline of its own: nothing watches it for 50 "
                "blocks of 10 min each, of every kind of time"
            ),
        ),
        (over(Reason.SILENT), "Closed after 3 h: no images of camera-7 come any more"),
        (
            over(Reason.FORGOTTEN),
            (
                "Closed after 3 h: there are more keys than drift.keys.max_keys, and camera-7 is "
                "no longer known; it may be as it was"
            ),
        ),
    ],
)
def test_one_sentence_for_whoever_knows_no_statistics(alert: DriftAlert, sentence: str) -> None:
    assert summary(alert, PLAN) == sentence
    event = event_tree(alert, facts=WITH_BASELINE)
    CLOSED.validate(event)
    assert event["data"]["summary"] == sentence


def test_the_rest_says_what_decided_then_why() -> None:
    lines = [line.strip() for line in render_lines(event_tree(ALERT, facts=WITH_BASELINE))]
    assert lines[0] == "FIRING  CRITICAL  ood-fraction  camera-7  2026-06-03T14:50:00.000Z"
    assert lines[1].startswith("camera-7: since 14:20 UTC 31 % of its images")
    assert (
        "Decided: Blocks of 10 min decide, as the calibration holds a baseline: its promise does "
        "not need records that are independent of each other"
    ) in lines
    assert "Compared with 1,440 blocks of the same key in the baseline" in lines
    assert (
        "Baseline scored-log: 2026-05-12 00:00:00 UTC to 2026-05-27 00:00:00 UTC, by Ann: the "
        "first good days"
    ) in lines
    why = lines.index("Why:")
    assert lines[why + 1] == (
        "blocks: 279 of 900 records are flagged (31 %) in 3 blocks of 10 min since 14:20 UTC: what "
        "changed most is that a block has more flagged records than those it is compared with: "
        "1,440 blocks of the same key in the baseline. Its evidence is 259,200; it fires at "
        "259,200 and ends below 259, or earlier, once the blocks speak at most 10 to 1 for a "
        "change."
    )
    assert (
        "Beside it, not deciding: ood-sequential (active: 600,000,000, active from 500,000,000 on)"
    ) in lines
    (promise,) = [line for line in lines if line.startswith("Promise")]
    assert (
        "any false alarm within a time T is at most T / 30 days, for every T: 1 % within 7 h 12 "
        "min. That is one in the time of 4,320 blocks, of all keys and the stream together. It "
        "holds for at least 95 % of all baselines"
    ) in promise
    assert promise.endswith(
        "The confidence covers the first 20 keys that learn. What a later one learns is too low "
        "with a probability of at most 0.0833 %, each for itself."
    )
    alone = replace(ALERT, key=None, block=replace(FOUND, new_keys=0))
    lines = list(render_lines(event_tree(alone, facts=WITH_BASELINE)))
    (promise,) = [line for line in lines if "Promise" in line]
    assert promise.endswith("Records need not be independent.")


@pytest.mark.parametrize(
    ("judged_by", "words"),
    [
        (JudgedBy.POOLED, "too few blocks of this one (at least 1,440 blocks of each)"),
        (JudgedBy.LEARNING, "this one is new: 12 of 50 blocks for a baseline of its own are"),
        (JudgedBy.ACCEPTED, "nothing yet: its change was accepted, and 12 of 50 blocks"),
        (JudgedBy.LEARNED, "1,440 blocks of its own, learned since it came or was accepted"),
        (JudgedBy.WAITING, "there is no room for more new keys, or no baseline at this time"),
    ],
)
def test_what_the_blocks_are_compared_with(judged_by: JudgedBy, words: str) -> None:
    alert = replace(ALERT, block=seen(judged_by=judged_by, learned=12))
    event = event_tree(alert, facts=WITH_BASELINE)
    CLOSED.validate(event)
    assert words in event["data"]["blocks"]["words"]


def test_the_event_names_baseline_and_acceptance() -> None:
    alert = over(Reason.ACCEPTED, acceptance=ACCEPTED)
    event = event_tree(alert, facts=WITH_BASELINE)
    data = event["data"]
    assert (event["type"], data["reason"]) == ("io.nap-stream.drift.resolved", "accepted")
    assert data["acceptance"] == {
        "number": 3,
        "from": "2026-06-02T10:00:00.000Z",
        "effective": "2026-06-03T14:50:00.000Z",
        "made": "2026-06-03T14:48:30.000Z",
        "by": "Ann",
        "reason": "a new lens",
    }
    assert data["baseline"]["by"] == "Ann"
    assert data["decided_by"]["monitor"] == "blocks"
    assert data["promise"]["run_time_s"] == 30 * 86_400
    assert any("Acceptance 3: as it is since" in line for line in render_lines(event))


def test_an_accepted_alert_ends_in_alertmanager() -> None:
    event = alert_event(
        over(Reason.ACCEPTED, acceptance=ACCEPTED), PLAN, SETTINGS, WITH_BASELINE, "1"
    )
    (sent,) = alertmanager_alerts(event, SETTINGS.alerts, NOON_MS + 60_000)
    assert sent["endsAt"] == "2026-06-03T14:50:00.000Z"
    assert sent["labels"]["key"] == "camera-7"
    assert sent["annotations"]["reason"] == "accepted"
    assert sent["annotations"]["summary"].startswith("Accepted after 3 h by Ann: a new lens.")


def test_single_records_say_why_they_decide() -> None:
    without = event_tree(KEY_BEGAN)["data"]
    assert without["decided_by"] == {
        "monitor": "records",
        "words": "Single records decide: the calibration holds no baseline",
    }
    assert (without["baseline"], without["blocks"], without["acceptance"]) == (None, None, None)
    off = event_tree(KEY_BEGAN, facts=WITH_BASELINE)["data"]
    assert off["decided_by"]["words"] == "Single records decide: drift.blocks is off"


def test_records_and_blocks_have_different_ids() -> None:
    of_records = replace(ALERT, block=None)
    assert event_tree(ALERT)["id"] != event_tree(of_records)["id"]


@pytest.mark.parametrize("value", ["because", "", None])
def test_the_schema_refuses_other_comparisons(value: str | None) -> None:
    event = event_tree(ALERT, facts=WITH_BASELINE)
    event["data"]["blocks"]["judged_by"] = value
    with pytest.raises(jsonschema.ValidationError):
        CLOSED.validate(event)


@pytest.mark.parametrize(
    ("since", "until", "now", "words"),
    [
        ("2026-05-12T00:00", "2026-05-27T00:00", "2026-06-01T00:00", "12 to 26 May"),
        ("2026-05-28T06:00", "2026-06-02T18:00", "2026-06-09T00:00", "28 May to 2 June"),
        ("2026-05-12T01:00", "2026-05-12T09:00", "2026-05-12T10:00", "12 May"),
        (
            "2025-12-30T00:00",
            "2026-01-03T00:00",
            "2026-01-05T00:00",
            "30 December 2025 to 2 January 2026",
        ),
        ("2025-05-12T00:00", "2025-05-27T00:00", "2026-01-05T00:00", "12 to 26 May 2025"),
    ],
)
def test_a_stretch_is_told_by_its_days(since: str, until: str, now: str, words: str) -> None:
    assert days(at(since), at(until), at(now)) == words


def test_numbers_as_a_person_says_them() -> None:
    assert [rounded(share) for share in (0, 0.0004, 0.0123, 0.309, 1)] == [
        *("0 %", "0.04 %", "1 %", "31 %", "100 %")
    ]
    assert [span(hours * 3_600_000) for hours in (720, 48, 36, 2)] == [
        *("30 days", "2 days", "1 d 12 h", "2 h")
    ]
