"""A whole run of the monitor, from preflight to the last alert."""

from collections.abc import Callable

import structlog

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import require_scoring
from nap_stream.clock import SystemClock
from nap_stream.drift.block_alerts import block_watch
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.records import CalibrationFacts
from nap_stream.kafka.client import connect, partition_count, require_topics
from nap_stream.model.execution import require_execution
from nap_stream.monitor.actors import RayCluster, ray_session
from nap_stream.monitor.driver import Driver, RunLimits, RunResult
from nap_stream.monitor.status import CoordinatorStatus
from nap_stream.pipeline.outputs import known_outputs
from nap_stream.process import stop_on_signals
from nap_stream.scored_log.proof.note import KEY, read_signer
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.scored_log.summary import LogSummaries
from nap_stream.settings.log import hidden_keys
from nap_stream.settings.schema import Settings


def run_monitor(
    settings: Settings,
    *,
    address: str | None,
    until_idle_s: float | None,
    max_records: int | None,
    on_status: Callable[[CoordinatorStatus], None],
) -> RunResult:
    """Check what can be checked at once, start the actors, supervise them to the end.

    ``address`` is of a Ray cluster; None for Ray on this machine, or the job's own cluster. The run
    ends when nothing came for ``until_idle_s`` seconds, or once ``max_records`` are logged at
    least. ``on_status`` is shown the coordinator's status about four times a second.

    Raises:
        NapStreamError: What keeps the monitor from starting or going on.
    """
    calibration, partitions = _preflight(settings)
    limits = RunLimits(partitions, until_idle_s, max_records)
    names = tuple(f"worker-{number}" for number in range(settings.worker.count))
    cpus = settings.worker.count * (settings.worker.num_cpus or settings.worker.torch_threads)
    with ray_session(address, cpus) as is_own, stop_on_signals() as stop:
        chains = LogSummaries(store_at(settings.log.root), settings, calibration.fingerprint)
        since = None if max_records is None else chains.ends()
        cluster = RayCluster(settings, calibration, since, is_own=is_own)
        log = structlog.get_logger()
        log.info(
            "monitor_started",
            metrics=cluster.start(),
            cpus_a_worker=cluster.num_cpus,
            gpus_a_worker=cluster.num_gpus,
        )
        driver = Driver(
            cluster, names, settings.driver, limits, clock=SystemClock(), on_status=on_status
        )
        result = driver.run(stop)
        log.info(
            "monitor_ended",
            ending=result.ending.value,
            unclean=list(result.unclean),
            degraded=[] if result.status is None else list(result.status.degraded()),
        )
        return result


def _preflight(settings: Settings) -> tuple[CalibrationFacts, int]:
    """Fail at once on what would fail after actors have started.

    Returns what the coordinator must know of the calibration, and how many partitions there are.
    """
    calibration = load_calibration(settings.calibration)
    detection_plan(settings.drift, calibration.facts)
    block_watch(settings.drift, calibration.facts)
    check_store(store_at(settings.log.root))
    if settings.log.checkpoints is not None:
        read_signer(settings.log.checkpoints.key_file, KEY)
    hidden_keys(settings.log.keys)
    connect(settings.kafka)
    require_topics(settings.kafka, settings.topics)
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
    return calibration.facts, partition_count(settings.kafka, settings.kafka.topic)
