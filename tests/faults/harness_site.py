"""A topic, a group and a log of their own, and what the log must hold in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nap_stream.settings.schema import KafkaSettings
from tests.faults.failpoints import Fault
from tests.faults.harness_broker import Broker
from tests.faults.harness_log import chain_ends, check_clean, compare
from tests.faults.harness_stream import Rows, Stream
from tests.faults.worker_process import WorkerSpec

LOG_TAIL = 6000


@dataclass(frozen=True, slots=True)
class Site:
    """Where workers work. ``folder`` has their files, and the log unless that is ``elsewhere``."""

    broker: Broker
    kafka: KafkaSettings
    dead_letter_topic: str
    partitions: int
    folder: Path
    elsewhere: str | None = None

    @property
    def root(self) -> Path | str:
        """The log's root."""
        return self.elsewhere or self.folder / "log"

    def worker(
        self, number: int, faults: Sequence[Fault] = (), *, segment_max_age_s: float = 0.1
    ) -> WorkerSpec:
        """A worker of this site, with files of its own."""
        name = f"worker-{number}"
        return WorkerSpec(
            kafka=self.kafka,
            dead_letter_topic=self.dead_letter_topic,
            log_root=self.root,
            name=name,
            incarnation=0,
            segment_max_age_s=segment_max_age_s,
            faults=tuple(faults),
            record=self.folder / f"{name}.fired",
            output=self.folder / f"{name}.log",
        )

    def ends(self) -> dict[int, int]:
        """Where each partition of the topic ends."""
        return self.broker.ends(self.kafka.topic, self.partitions)

    def logged(self) -> dict[int, int]:
        """Where each chain ends."""
        return chain_ends(self.root, self.kafka.topic, self.partitions)

    def committed(self) -> dict[int, int]:
        """What the group has committed; 0 for a partition that nothing came to."""
        found = self.broker.committed(self.kafka.group_id)
        return dict.fromkeys(range(self.partitions), 0) | found

    def check(self, *streams: Stream) -> None:
        """Compare what is there with what was produced; for when all workers are gone.

        Raises:
            AssertionError: Something is lost, doubled, or not as it was sent; the log is not
                clean; what is committed is not the end; a dead letter is missing.
        """
        produced: Rows = {}
        for stream in streams:
            produced |= stream.rows
        difference = compare(self.root, self.kafka.topic, produced)
        assert not difference, difference
        assert check_clean(self.root) == self.ends()
        committed, ends = self.committed(), self.ends()
        assert committed == ends, f"committed {committed}, and the chains end at {ends}"
        bad = {place for stream in streams for place in stream.bad}
        dead = self.broker.dead_letters(self.dead_letter_topic)
        assert dead == bad, f"dead letters that are missing or too many: {bad ^ dead}"

    def worker_logs(self) -> str:
        """The ends of the workers' logs, and what has happened to them."""
        files = sorted((*self.folder.glob("*.fired"), *self.folder.glob("*.log")))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-LOG_TAIL:]}" for file in files)


def new_site(
    broker: Broker,
    folder: Path,
    *,
    partitions: int,
    session_timeout_s: float,
    log_root: str | None = None,
) -> Site:
    """A site with topics that are new, in a folder that is made; the log there or at its root."""
    folder.mkdir(parents=True)
    kafka, dead_letter_topic = broker.new_topic(partitions, session_timeout_s)
    return Site(broker, kafka, dead_letter_topic, partitions, folder, log_root)
