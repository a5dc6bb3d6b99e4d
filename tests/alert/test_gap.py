import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nap_stream.alert.event import gap_event
from nap_stream.alert.webhook import alertmanager_alerts
from nap_stream.settings.alerts import AlertSettings
from tests.support.schemas import gap_schema
from tests.support.summaries import partition, settings, summary

GAP = summary(3, 200, [], end=270, gap="offsets [200, 270): retention deleted them")


def tree() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(gap_event(GAP, settings(), "1.2.3").event))
    return made


def test_the_event_fulfils_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(gap_schema())
    jsonschema.validate(tree(), gap_schema())


def test_the_event_is_what_its_version_says() -> None:
    golden = Path(__file__).parent / "golden" / "gap.json"
    found = json.loads(golden.read_text(encoding="utf-8"))
    jsonschema.validate(found, gap_schema())
    assert tree() == found


def test_says_what_is_missing_and_where_that_is_declared() -> None:
    event = tree()

    assert event["type"] == "io.nap-stream.gap"
    assert event["source"] == "/nap-stream/images/ood-fraction"
    assert event["data"] == {
        "monitor": "ood-fraction",
        "topic": "images",
        "partition": 3,
        "base_offset": 200,
        "end_offset": 270,
        "offsets": 70,
        "reason": "offsets [200, 270): retention deleted them",
        "segment": "topic=images/partition=3/00000000000000000200.parquet",
        "version": "1.2.3",
    }


def test_the_id_is_that_of_the_monitor_and_the_offsets_alone() -> None:
    event = gap_event(GAP, settings(), "1.2.3").event
    again = gap_event(replace(GAP, gap="other words"), settings(), "2.0").event
    others = [
        replace(GAP, end_offset=271),
        replace(GAP, base_offset=199),
        replace(GAP, partition=partition(4)),
    ]

    assert again["id"] == event["id"]
    ids = {gap_event(other, settings(), "1.2.3").event["id"] for other in others}
    ids.add(gap_event(GAP, settings(alerts={"monitor": "night"}), "1.2.3").id)
    assert len(ids | {event["id"]}) == 5


def test_key_and_state() -> None:
    alert = gap_event(GAP, settings(), "1")

    assert (alert.key, alert.state) == ("ood-fraction/gap/3", "gap")
    (sent,) = alertmanager_alerts(alert, AlertSettings(), 0)
    assert sent["labels"]["monitor"] == "ood-fraction"


def test_a_segment_without_a_gap_makes_no_alert() -> None:
    with pytest.raises(ValueError, match="gap"):
        gap_event(summary(0, 0, [(1, False)]), settings(), "1")


@pytest.mark.parametrize("key", sorted(tree()["data"]))
def test_the_schema_wants_every_field(key: str) -> None:
    event = copy.deepcopy(tree())
    del event["data"][key]

    with pytest.raises(jsonschema.ValidationError, match=key):
        jsonschema.validate(event, gap_schema())
