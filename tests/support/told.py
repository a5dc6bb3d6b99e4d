"""A reporter that remembers what a worker line tells."""

from dataclasses import dataclass, field

from nap_stream.records import SegmentSummary, WorkerReport


@dataclass
class Told:
    """Summaries and reports, in order."""

    summaries: list[SegmentSummary] = field(default_factory=list)
    reports: list[WorkerReport] = field(default_factory=list)

    def submit(self, summary: SegmentSummary) -> None:
        self.summaries.append(summary)

    def report(self, report: WorkerReport) -> None:
        self.reports.append(report)
