"""Where a coordinator begins: after the last one's checkpoint, or at the log's tail."""

import structlog

from nap_stream.drift.monitor import DriftMonitor
from nap_stream.records import DriftAlert, TopicPartition
from nap_stream.runtime.alert_desk import AlertDesk
from nap_stream.runtime.hindsight import Hindsight
from nap_stream.runtime.intake import LAST_OFFSET, SummaryIntake, SummaryLog


class Takeover:
    """Lets a new coordinator take up the story, before anybody tells it anything.

    With a checkpoint the story goes on: what the log has beyond it is judged and told. Without
    one that fits, the log's tail is judged and nothing told of what is over; an alert that fires
    at its end is.

    Args:
        monitor: A new one.
        summaries: The log.
        intake: Feeds the monitor.
        desk: Is told what was decided, and has the checkpoint.
    """

    def __init__(
        self, monitor: DriftMonitor, summaries: SummaryLog, intake: SummaryIntake, desk: AlertDesk
    ) -> None:
        self._monitor, self._summaries = monitor, summaries
        self._intake, self._desk = intake, desk

    def restore(self) -> bool:
        """Take up where the checkpoint says, if there is one that fits this log.

        Returns:
            False where there is none: then the monitor is as before.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        if not self._desk.restore():
            return False
        ahead = [str(name) for name in self._monitor.partitions() if self._is_ahead(name)]
        if ahead:
            # All that comes would be taken for known.
            structlog.get_logger().warning("checkpoint_ahead_of_log", partitions=ahead)
            old = self._monitor
            old.take_over(DriftMonitor(old.plan, old.settings, old.clock))
            return False
        structlog.get_logger().info("monitor_restored")
        return True

    def go_on(self) -> None:
        """Judge and tell what the log has beyond the checkpoint.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        names = self._summaries.partitions()
        reached = {name: self._monitor.end(name) or 0 for name in names}
        chains = {n: self._summaries.read(n, at, LAST_OFFSET) for n, at in reached.items()}
        self._intake.catch_up(chains, self._desk.take)

    def begin_at_tail(self) -> None:
        """Judge the log's tail; tell only what fires at its end.

        Raises:
            ScoredLogError: The log cannot be read.
        """
        structlog.get_logger().info("monitor_rebuilt_from_log")
        decided: list[DriftAlert] = []
        tails = {name: self._summaries.tail(name) for name in self._summaries.partitions()}
        self._intake.catch_up(tails, lambda update: decided.extend(update.alerts))
        newest_ms = self._monitor.newest_ms()
        if newest_ms is not None:
            pane_ms = self._monitor.settings.drift.pane_ms
            self._desk.look_back(Hindsight(newest_ms - newest_ms % pane_ms), decided)

    def _is_ahead(self, name: TopicPartition) -> bool:
        return (self._monitor.end(name) or 0) > (self._summaries.end(name) or 0)
