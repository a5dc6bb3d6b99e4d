import pytest

from nap_stream.alert.event import cloud_event
from nap_stream.text import rfc3339
from tests.support.summaries import settings


def test_an_event_without_a_time() -> None:
    event = cloud_event({}, settings(), kind="k", schema="s", identity=["a", 1, None], subject="x")
    assert event == {
        "specversion": "1.0",
        # printf '["a", 1, null]' | sha256sum | cut -c1-32
        "id": "30780d0daa72bce56290bae99d93fa5e",
        "source": "/nap-stream/images/ood-fraction",
        "type": "k",
        "subject": "x",
        "datacontenttype": "application/json",
        "dataschema": "s",
        "data": {},
    }


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_769_860_800_007, "2026-01-31T12:00:00.007Z"),
        (10**18, "9999-12-31T23:59:59.999Z"),
        (-(10**18), "0001-01-01T00:00:00.000Z"),
    ],
)
def test_rfc3339(time_ms: int, text: str) -> None:
    assert rfc3339(time_ms) == text
