"""What a monitor decides of the past: only what still holds at its end is told."""

from collections.abc import Sequence

from nap_stream.core.alert_state import Transition
from nap_stream.records import DriftAlert


class Hindsight:
    """Holds back the alerts of panes that ended by a time, until all of those are judged.

    Some may be judged late: they wait for a partition that lags, or that brings nothing more.

    Args:
        until_ms: The end of the past, in milliseconds since the epoch.
    """

    def __init__(self, until_ms: int) -> None:
        self._until_ms = until_ms
        self._firing: dict[str | None, DriftAlert] = {}

    def sift(
        self, alerts: Sequence[DriftAlert], judged_until_ms: int | None
    ) -> tuple[DriftAlert, ...] | None:
        """Take alerts in order; give those to be told, or None while the past goes on.

        Args:
            alerts: What was decided since the last call.
            judged_until_ms: The end of the newest pane that was judged; None before the first.

        Returns:
            The newest alert of the stream and of each key that fires at the end of the past, and
            what came after. From then on this is of no more use.
        """
        past = [alert for alert in alerts if alert.time_ms <= self._until_ms]
        for alert in past:
            self._firing.pop(alert.key, None)
            if alert.change.transition is Transition.FIRING:
                self._firing[alert.key] = alert
        if judged_until_ms is None or judged_until_ms < self._until_ms:
            return None
        return (*self._firing.values(), *alerts[len(past) :])
