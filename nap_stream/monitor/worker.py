"""A worker, put together from settings. Knows no Ray."""

import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import base_scores_of, require_fingerprint
from nap_stream.clock import Clock, StopRequest
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.model.load import LoadedModel, OnePassScorer, choose_device, load_model
from nap_stream.pipeline.commits import Reporter, WorkerCounters
from nap_stream.pipeline.line import WorkerLine
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.scored_log.summary import summarise, summary_shape
from nap_stream.settings.schema import Settings, WorkerSettings
from nap_stream.source.kafka import KafkaSource

WORKER_SHARE = 0.6
"""Of the driver's shutdown deadline, so that a worker ends before the driver's patience does."""


def run_worker(
    settings: Settings,
    name: str,
    incarnation: int,
    *,
    num_cpus: int,
    num_gpus: float,
    reporter: Reporter,
    stop: StopRequest,
    clock: Clock,
) -> None:
    """Load the model, join the group, work until told to stop, leave in good order.

    ``name`` is stable over restarts and is the static member of the consumer group;
    ``incarnation`` counts the restarts. ``num_cpus`` and ``num_gpus`` are what Ray has given it.

    Raises:
        NapStreamError: What keeps the worker from starting or going on.
    """
    device = choose_device(num_gpus)
    torch.set_num_threads(settings.worker.torch_threads)
    loaded = load_model(settings.model, device)
    with _open_line(
        settings, name, incarnation, loaded, num_cpus=num_cpus, reporter=reporter, clock=clock
    ) as line:
        deadline_s = settings.driver.shutdown_deadline_s * WORKER_SHARE
        line.run(stop.is_made, deadline_s, stop_age_s=stop.age_s)


@contextmanager
def _open_line(
    settings: Settings,
    name: str,
    incarnation: int,
    loaded: LoadedModel,
    *,
    num_cpus: int,
    reporter: Reporter,
    clock: Clock,
) -> Iterator[WorkerLine]:
    calibration = load_calibration(settings.calibration)
    require_fingerprint(calibration, loaded)
    counters = WorkerCounters(name, incarnation)
    decode = MessageDecoder(
        preprocessing=settings.model.preprocessing,
        limits=settings.limits,
        kept_headers=settings.log.headers,
        clock=clock,
    )
    base_scores = base_scores_of(calibration, loaded)
    scores = [
        RowScorer(
            scorer=OnePassScorer(own, base_scores),
            class_names=own.class_names,
            calibration=calibration,
            batch_size=settings.worker.batch_size,
            clock=clock,
        )
        for own in _replicas(loaded, batches_in_flight(settings.worker, loaded.device, num_cpus))
    ]
    store = store_at(settings.log.root)
    if incarnation == 0:
        # One that replaces another waits for a disk that is full, as the other did.
        check_store(store)
    log = ScoredLog(
        store,
        WriterIdentity(_writer_id(name, incarnation), loaded.fingerprint, calibration.fingerprint),
        clock,
    )

    shape = summary_shape(settings)
    with ExitStack() as stack:
        dead_letters = KafkaDeadLetters(
            settings.kafka,
            settings.dead_letters.topic,
            max_payload_bytes=settings.kafka.max_fetch_bytes,
        )
        stack.callback(dead_letters.close)
        stage = ScoringStage(
            decode,
            scores,
            batch_size=settings.worker.batch_size,
            linger_s=settings.worker.linger_ms / 1000,
            decode_threads=settings.worker.decode_threads or num_cpus,
            max_decoded_images=settings.worker.max_in_hand_images,
            max_decoded_bytes=settings.worker.max_in_hand_bytes // 2,
            clock=clock,
            observe=counters.observe,
        )
        stack.callback(stage.close)
        yield WorkerLine(
            lambda listener: KafkaSource(settings.kafka, listener, instance_id=name),
            stage=stage,
            log=log,
            dead_letters=dead_letters,
            reporter=reporter,
            summarise=lambda segment, rows, gap: summarise(segment, rows, shape, gap),
            log_settings=settings.log,
            worker_settings=settings.worker,
            clock=clock,
            counters=counters,
            resume_from=settings.kafka.resume_from,
        )


def batches_in_flight(settings: WorkerSettings, device: torch.device, num_cpus: int) -> int:
    """How many batches a worker with so many CPUs scores at once."""
    if settings.batches_in_flight is not None:
        return settings.batches_in_flight
    return 2 if device.type == "cuda" else max(1, num_cpus // settings.torch_threads)


def _replicas(loaded: LoadedModel, count: int) -> list[LoadedModel]:
    """A model for each thread: what reads the feature map is for one thread at a time."""
    return [loaded, *(loaded.replica() for _ in range(count - 1))]


def _writer_id(name: str, incarnation: int) -> str:
    """Unique over hosts, processes and restarts, and readable in a footer."""
    process = f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    return f"{name}.{incarnation}@{process}"
