"""A whole run of the monitor, from preflight to the last alert."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

import structlog

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import require_scoring
from nap_stream.clock import SystemClock
from nap_stream.drift.block_alerts import block_watch, keys_stored_otherwise
from nap_stream.drift.detectors import detection_plan
from nap_stream.errors import ConfigError, LogRootError
from nap_stream.files import publish
from nap_stream.kafka.client import TopicCounter, connect, require_topics, topics_read
from nap_stream.kafka.offsets import committed_offsets, offsets_of
from nap_stream.model.execution import require_execution
from nap_stream.monitor.cluster import RayCluster
from nap_stream.monitor.driver import Driver, Ending, RunLimits, RunResult
from nap_stream.monitor.fleet import COUNT_EVERY_S, COUNT_SELDOM_S, PartitionCount
from nap_stream.monitor.reload import Reloader
from nap_stream.monitor.session import ray_session, wait_until_gone
from nap_stream.monitor.setup import Setup, file_digests
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.pipeline.commits import note_beginning
from nap_stream.pipeline.outputs import known_outputs
from nap_stream.pipeline.partition import ResumeFrom, require_within_topic
from nap_stream.process import note_hangups, stop_on_signals, writer_id
from nap_stream.records import PartitionOffsets
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.proof.note import KEY, read_signer
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.scored_log.summary import LogEnds, LogSummaries
from nap_stream.settings.log import hidden_keys
from nap_stream.settings.schema import Settings
from nap_stream.tracing import require_library

WRITE_AGAIN_S = 10.0
"""How long a discovery file that could not be written is left alone."""
STOPPED = RunResult(Ending.STOPPED, None, ())
"""The end of a run that was stopped before it began."""


def run_monitor(
    settings: Settings,
    *,
    address: str | None,
    until_idle_s: float | None,
    max_records: int | None,
    on_status: Callable[[CoordinatorStatus], None],
    hangup: threading.Event | None = None,
    reread: Callable[[], Settings] | None = None,
    source: str = "",
) -> RunResult:
    """Check what can be checked at once, start the actors, supervise them to the end.

    ``address`` is of a Ray cluster; None for Ray on this machine, or the job's own cluster. The run
    ends when nothing came for ``until_idle_s`` seconds, or once ``max_records`` are logged at
    least. ``on_status`` is shown the coordinator's status about four times a second. ``reread``
    reads the settings again, from what people call ``source``, when a reload is asked for; None for
    the same settings. ``hangup`` is the event of `note_hangups`, which asks for one.

    Raises:
        NapStreamError: What keeps the monitor from starting or going on.
    """
    setup = _preflight(settings)
    _begin(setup)
    # Once for all runs: a reload loses no row of what is counted.
    since = None if max_records is None else _log_ends(setup)
    cpus = settings.worker.at_least * (settings.worker.num_cpus or settings.worker.torch_threads)
    hangup = hangup or threading.Event()
    reloader = Reloader(
        setup,
        reread=reread or (lambda: settings),
        preflight=_preflight,
        fingerprint=lambda before: load_calibration(before.calibration).fingerprint,
        source=source,
        hangup=hangup,
        clock=SystemClock(),
    )
    with (
        ray_session(address, cpus) as is_own,
        note_hangups(hangup),
        stop_on_signals() as stop,
        scrape_target(settings) as note_target,
    ):

        def look(status: CoordinatorStatus) -> None:
            note_target(status.metrics_url)
            reloader.note(status)
            on_status(status)

        run = partial(
            _run_once,
            limits=RunLimits(until_idle_s, max_records),
            since=since,
            is_own=is_own,
            reloader=reloader,
            stop=stop,
            look=look,
        )
        return follow_reloads(
            setup,
            run,
            reloader=reloader,
            stop=stop,
            make_way=lambda: wait_until_gone(
                settings.kafka.group_id, reloader.metrics_url, SystemClock()
            ),
        )


def follow_reloads(
    setup: Setup,
    run: Callable[[Setup], RunResult],
    *,
    reloader: Reloader,
    stop: threading.Event,
    make_way: Callable[[], None],
) -> RunResult:
    """Run by one setup after the other, until a run ends by itself or ``stop``; give its end.

    ``make_way`` is called between them.

    Raises:
        Exception: What ended a run, where there is none before it to go back to.
    """
    result, is_first = STOPPED, True
    while not stop.is_set():
        try:
            if not is_first:
                make_way()
            is_first = False
            result = run(setup)
        except Exception as error:
            before = None if stop.is_set() else reloader.back(error, stop)
            if before is None:
                raise
            setup = before
        else:
            if result.ending is not Ending.RELOAD:
                return result
            setup = reloader.take()
    return replace(result, ending=Ending.STOPPED)


def _log_ends(setup: Setup) -> LogEnds:
    store, fingerprint = store_at(setup.settings.log.root), setup.calibration.fingerprint
    return LogSummaries(store, setup.settings, fingerprint).ends()


def _begin(setup: Setup) -> None:
    """Have each partition's chain begun."""
    settings, calibration = setup.settings, setup.calibration
    writer = WriterIdentity(
        writer_id("driver"), calibration.model_fingerprint, calibration.fingerprint
    )
    chains = ScoredLog(store_at(settings.log.root), writer, SystemClock())
    begin_chains(chains, setup.offsets, settings.kafka.start, settings.kafka.resume_from)


def _run_once(
    setup: Setup,
    *,
    limits: RunLimits,
    since: LogEnds | None,
    is_own: bool,
    reloader: Reloader,
    stop: threading.Event,
    look: Callable[[CoordinatorStatus], None],
) -> RunResult:
    """Run by one setup to its end, or until a reload; its coordinator is gone then."""
    settings = setup.settings
    topics = Counter(one.partition.topic for one in setup.offsets)
    counter = TopicCounter(settings.kafka, settings.reads)
    every_s = _count_every_s(settings, limits.until_idle_s)
    partitions = PartitionCount(topics, counter, every_s)
    with closing(counter), closing(partitions):
        if stop.is_set():
            return STOPPED
        cluster = RayCluster(
            *(settings, setup.calibration, since),
            partitions=partitions,
            is_own=is_own,
        )
        log = structlog.get_logger()

        def begin() -> None:
            log.info(
                "monitor_started",
                metrics=cluster.start(),
                cpus_a_worker=cluster.num_cpus,
                gpus_a_worker=cluster.num_gpus,
            )
            reloader.follow(cluster)

        driver = Driver(
            *(cluster, settings.driver, limits),
            clock=SystemClock(),
            on_status=look,
            reloads=reloader.look,
            is_loading=lambda: reloader.is_loading,
        )
        result = driver.run(stop, begin)
        log.info(
            "monitor_ended",
            ending=result.ending.value,
            unclean=list(result.unclean),
            degraded=[] if result.status is None else list(result.status.degraded()),
        )
        return result


def _count_every_s(settings: Settings, until_idle_s: float | None) -> float:
    """How often partitions are counted: seldom where neither workers, topics nor the end follow."""
    follows = settings.worker.count == "auto" or until_idle_s is not None
    return COUNT_EVERY_S if follows or len(settings.reads.names) != 1 else COUNT_SELDOM_S


def begin_chains(
    log: ScoredLog,
    offsets: Sequence[PartitionOffsets],
    start: Literal["earliest", "latest"],
    resume_from: ResumeFrom = "log",
) -> None:
    """Fix where the chains of topics start that have none, before any is read.

    In a first run, before any chain has a segment, that is the offset that the group has committed,
    else where the topic begins or ends now, as ``start`` says. A topic that was added later begins
    where it does now. A topic's first partition comes last: once that has a chain, the topic has
    been begun, and a partition without one was added later, which is left to its worker.

    Raises:
        LogRootError: The group has read what the log has nothing of, and ``resume_from`` is log.
        OffsetRangeError: What the group has committed is past the topic's end.
        ScoredLogError: The log cannot be read or written.
    """
    # Of a topic's partitions the smallest is the last one to take its place.
    names = sorted((one.partition for one in offsets), reverse=True)
    first = {name.topic: name for name in names}
    begun = {topic for topic, name in first.items() if log.end(name) is not None}
    if begun == first.keys():
        return
    ends = {one.partition: log.end(one.partition) for one in offsets}
    missing = [
        one for one in offsets if one.partition.topic not in begun and ends[one.partition] is None
    ]
    is_first = all(end is None or end.base is None for end in ends.values())
    read = sum(one.committed is not None for one in missing)
    if is_first and read and resume_from == "log":
        raise LogRootError(
            f"the group has read {read} partitions, and the log has none of them",
            log.root,
            "Mount it or restore it. To begin a new log where the group is, start once with "
            "kafka.resume_from: committed; to read all that the topic has, with a new "
            "kafka.group_id",
        )
    marks = {*first.values()}
    for one in sorted(missing, key=lambda one: (one.partition in marks, one.partition)):
        offset = one.earliest
        if is_first:
            require_within_topic(one)
            if one.committed is not None:
                offset = one.committed
            elif start == "latest":
                offset = one.end
        note_beginning(one, log.begin(one.partition, offset, one.topic_id))


@contextmanager
def scrape_target(settings: Settings) -> Iterator[Callable[[str | None], None]]:
    """Give what is to be told where /metrics is; ``metrics.discovery_file`` says it to Prometheus.

    The file has the form of ``file_sd_configs``. It is written anew where the coordinator moves,
    and has no target after the block.
    """
    path, told, again_s = settings.metrics.discovery_file, "", float("-inf")
    clock = SystemClock()

    def write(targets: Sequence[str]) -> bool:
        # Names that no series has: they would take the place of its own.
        labels = {
            "nap_stream_monitor": settings.alerts.monitor,
            "nap_stream_topic": settings.kafka.topic,
        }
        tree = [{"targets": [target], "labels": labels} for target in targets]
        try:
            if path is not None:
                publish(path, json.dumps(tree, indent=2).encode() + b"\n")
        except ConfigError as error:
            structlog.get_logger().error("discovery_file_not_written", cause=str(error))
            return False
        return True

    def note(url: str | None) -> None:
        nonlocal told, again_s
        if url is not None and url != told and clock.monotonic() >= again_s:
            if write([urlsplit(url).netloc]):
                told = url
            else:
                again_s = clock.monotonic() + WRITE_AGAIN_S

    try:
        yield note
    finally:
        if told:
            write([])


def _preflight(settings: Settings) -> Setup:
    """Fail at once on what would fail after actors have started."""
    # Before what they say is used: what is written meanwhile differs from it later.
    files = file_digests(settings)
    calibration = load_calibration(settings.calibration)
    detection_plan(settings.drift, calibration.facts)
    block_watch(settings.drift, calibration.facts)
    check_store(store_at(settings.log.root))
    if settings.log.checkpoints is not None:
        read_signer(settings.log.checkpoints.key_file, KEY)
    for warning in keys_stored_otherwise(calibration.facts, hidden_keys(settings.log.keys)):
        structlog.get_logger().warning("baseline_keys_stored_otherwise", cause=warning)
    connect(settings.kafka)
    require_topics(settings.kafka, settings.topics)
    topics = topics_read(settings.kafka, settings.reads)
    require_scoring(calibration, settings.scoring)
    document = calibration.document
    if settings.model.elsewhere is None:
        require_execution(document.execution, settings.model, document.speeds)
    else:
        known = known_outputs(calibration, settings.model)
        structlog.get_logger().info(
            "model_runs_elsewhere",
            name=settings.model.origin,
            fingerprint=known.model.fingerprint,
            weights="unknown",
            preprocessing="unknown",
            precision="unknown",
            calibrated_on="outputs" if document.model.elsewhere else "images",
        )
    require_library(settings)
    committed = committed_offsets(settings.kafka, settings.reads)
    offsets = offsets_of(settings.kafka, committed, topics)
    return Setup(settings, calibration.facts, offsets, files)
