"""A store and sinks in memory answer at once: where one is late, the machine stood still."""

import pytest

from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have alerts wait for their events, their checkpoint and the last attempt as tests do."""
    for name in (
        "nap_stream.monitor.journal.PATIENCE_S",
        "nap_stream.monitor.alerts.PATIENCE_S",
        "nap_stream.monitor.alerts.LAST_ATTEMPT_S",
        "nap_stream.monitor.coordinator.LAST_ATTEMPT_S",
        "nap_stream.monitor.coordinator.LAST_WAIT_S",
        "nap_stream.alert.sinks.LAST_ATTEMPT_S",
    ):
        monkeypatch.setattr(name, PATIENCE_S)
