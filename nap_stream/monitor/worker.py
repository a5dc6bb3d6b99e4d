"""A worker, put together from settings. Knows no Ray."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog
import torch

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import Calibration, base_scores_of, require_fingerprint
from nap_stream.clock import Clock, StopRequest
from nap_stream.dead_letter import DeadLetters, KafkaDeadLetters
from nap_stream.errors import FingerprintMismatchError, ModelError, NapStreamError
from nap_stream.feed import on_cpu
from nap_stream.fetched import shown
from nap_stream.messages.reader import open_reader
from nap_stream.model.execution import require_execution, require_precision
from nap_stream.model.facts import UNKNOWN, Execution
from nap_stream.model.lane import open_lane, share_memory
from nap_stream.model.load import KnownModel, LoadedModel, choose_device, load_model
from nap_stream.model.preprocessing import LARGEST_BATCH, default_batch_size
from nap_stream.pipeline.commits import Reporter, WorkerCounters
from nap_stream.pipeline.evidence import EvidenceKeeper
from nap_stream.pipeline.line import WorkerLine
from nap_stream.pipeline.outputs import KnownOutputs, known_outputs, output_decoder, score_sent
from nap_stream.pipeline.rows import DecodeOnCpu, MessageDecoder, RowScorer, ScoreImages
from nap_stream.pipeline.scoring import PARCEL_MESSAGES, Decode, ScoringStage
from nap_stream.process import writer_id
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores import check_store, store_at
from nap_stream.scored_log.summary import summarise, summary_shape
from nap_stream.settings.log import hidden_keys
from nap_stream.settings.run import WorkerSettings
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings, Settings
from nap_stream.source.base import PartitionListener, Source
from nap_stream.source.kafka import KafkaSource
from nap_stream.tracing import OFF, Tracing, open_tracing

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
    calibration: str | None = None,
) -> None:
    """Load the model, join the group, work until told to stop, leave in good order.

    ``name`` is stable over restarts and is the static member of the consumer group;
    ``incarnation`` counts the restarts. ``num_cpus`` and ``num_gpus`` are what Ray has given it.
    ``calibration`` is the fingerprint of what the coordinator judges by; None asks for none.

    Raises:
        NapStreamError: What keeps the worker from starting or going on.
    """
    device = choose_device(num_gpus)
    share_memory(num_gpus, device)
    held, loaded, threads = load_calibrated(settings, device, num_cpus)
    if calibration not in {None, held.fingerprint}:
        raise FingerprintMismatchError(
            f"the calibration was changed since the run began, which judges by {calibration}",
            f"calibration {held.fingerprint} in {shown(settings.calibration)}",
            "Put the one of before back, or start the run anew",
        )
    if incarnation == 0:
        # One that replaces another waits for a disk that is full, as the other did.
        check_store(store_at(settings.log.root))
    with ExitStack() as stack:
        dead_letters = KafkaDeadLetters(
            settings.kafka,
            settings.dead_letters.topic,
            max_payload_bytes=settings.kafka.max_fetch_bytes,
        )
        stack.callback(dead_letters.close)
        tracing = open_tracing(settings, f"{name}.{incarnation}", clock)
        stack.callback(tracing.close)
        line = stack.enter_context(
            open_line(
                settings,
                loaded,
                held,
                threads=threads,
                open_source=lambda listener: KafkaSource(
                    settings.kafka, listener, instance_id=name, reads=settings.reads
                ),
                dead_letters=dead_letters,
                reporter=reporter,
                counters=WorkerCounters(name, incarnation),
                writer_id=writer_id(f"{name}.{incarnation}"),
                clock=clock,
                tracing=tracing,
            )
        )
        # What is there by now stays. Python's collector would look through all of it again and
        # again, at half of the cost of a small image.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        deadline_s = settings.driver.shutdown_deadline_s * WORKER_SHARE
        line.run(stop.is_made, deadline_s, stop_age_s=stop.age_s)


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads a worker has: of torch for one batch, to score, and to decode."""

    torch: int
    scoring: int
    decoding: int


def threads_of(
    settings: WorkerSettings, device: torch.device, num_cpus: int, execution: Execution
) -> Threads:
    """The threads of a worker with so many CPUs.

    A model that torch compiles, or that runs in TF32, is for one thread. On a CPU its batch has all
    threads.
    """
    scoring, intra_op = settings.batches_in_flight, settings.torch_threads
    is_for_one = execution.compile != "off" or execution.precision == "tf32"
    if scoring is None and device.type != "cpu":
        scoring = 1 if is_for_one else 2
    elif scoring is None and is_for_one:
        scoring, intra_op = 1, num_cpus
    return Threads(
        torch=intra_op,
        scoring=scoring or max(1, num_cpus // intra_op),
        decoding=settings.decode_threads or num_cpus,
    )


def batch_size_of(settings: WorkerSettings, preprocessing: PreprocessingSettings | None) -> int:
    """How many images a batch of a worker has; without preprocessing they are rows of outputs."""
    if settings.batch_size is not None:
        return settings.batch_size
    return LARGEST_BATCH if preprocessing is None else default_batch_size(preprocessing)


def load_calibrated(
    settings: Settings, device: torch.device, num_cpus: int
) -> tuple[Calibration, LoadedModel | KnownOutputs, Threads]:
    """The calibration, its model as it was calibrated, and the threads of a worker, set for torch.

    Of a model that runs elsewhere, what is known of its outputs.

    Raises:
        NapStreamError: One of them cannot be loaded, or they do not belong together.
    """
    calibration = load_calibration(settings.calibration)
    if settings.model.elsewhere is not None:
        known = known_outputs(calibration, settings.model)
        threads = threads_of(settings.worker, device, num_cpus, UNKNOWN)
        torch.set_num_threads(threads.torch)
        return calibration, known, threads
    execution = calibration.document.execution
    require_execution(execution, settings.model, calibration.document.speeds)
    threads = threads_of(settings.worker, device, num_cpus, execution)
    # Before the model is loaded: a compiled one is compiled for this number, too.
    torch.set_num_threads(threads.torch)
    batch_size = batch_size_of(settings.worker, calibration.document.model.preprocessing)
    loaded = load_model(settings.model, device, execution, batch_size=batch_size)
    require_fingerprint(calibration, loaded)
    return calibration, loaded, threads


def load_to_check(
    settings: ModelSettings, calibration: Calibration | None, device: torch.device
) -> LoadedModel:
    """The model as the calibration has it computed, where this device can; else plain float32.

    Raises:
        NapStreamError: It cannot be loaded.
    """
    execution = Execution()
    if calibration is not None:
        with suppress(NapStreamError):
            calibrated = replace(calibration.document.execution, compile="off")
            require_precision(calibrated.precision, device)
            execution = calibrated
    return load_model(settings, device, execution)


def require_model(settings: Settings) -> None:
    """Load the model on the CPU, and refuse it where it is not the calibration's.

    Raises:
        NapStreamError: One of them cannot be loaded, or they do not belong together.
    """
    calibration = load_calibration(settings.calibration)
    if settings.model.elsewhere is not None:
        known_outputs(calibration, settings.model)
        return
    loaded = load_to_check(settings.model, calibration, torch.device("cpu"))
    require_fingerprint(calibration, loaded)


@contextmanager
def open_line(
    settings: Settings,
    loaded: LoadedModel | KnownOutputs,
    calibration: Calibration,
    *,
    threads: Threads,
    open_source: Callable[[PartitionListener], Source],
    dead_letters: DeadLetters,
    reporter: Reporter,
    counters: WorkerCounters,
    writer_id: str,
    clock: Clock,
    tracing: Tracing = OFF,
) -> Iterator[WorkerLine]:
    """A worker's line and its threads, which end with the block.

    ``calibration`` is of the model ``loaded``, or of the one whose outputs are known; ``writer_id``
    is what segments name.
    """
    reader = open_reader(settings.messages, settings.limits, clock=clock)
    fetch = settings.messages.fetch
    decode: Decode
    decode_on_cpu: DecodeOnCpu | None = None
    lanes: Sequence[ScoreImages]
    if isinstance(loaded, KnownOutputs):
        batch_size = batch_size_of(settings.worker, None)
        model: KnownModel = loaded.model
        decode = output_decoder(loaded, settings.limits, settings.log.headers, clock)
        lanes = [partial(score_sent, base_scores=loaded.base_scores)] * threads.scoring
    else:
        batch_size = batch_size_of(settings.worker, loaded.preprocessing)
        model = loaded
        decode_on_cpu = partial(on_cpu, limits=settings.limits, preprocessing=loaded.preprocessing)
        base_scores = base_scores_of(calibration, loaded)
        lanes = [
            open_lane(
                own,
                base_scores,
                batch_size=batch_size,
                note_out_of_memory=counters.note_out_of_memory,
            )
            for own in replicas(loaded, threads.scoring)
        ]
        decode = MessageDecoder(
            preprocessing=loaded.preprocessing,
            limits=settings.limits,
            kept_headers=settings.log.headers,
            clock=clock,
            read=reader,
            decode_threads=threads.decoding,
            keeps_files=settings.evidence.root is not None,
        )
    hidden = hidden_keys(settings.log.keys)
    scores = [
        RowScorer(
            score_images=lane,
            class_names=model.class_names,
            calibration=calibration,
            clock=clock,
            decode_on_cpu=decode_on_cpu,
            hidden=hidden,
        )
        for lane in lanes
    ]
    writer = WriterIdentity(writer_id, model.fingerprint, calibration.fingerprint)
    shape = summary_shape(settings)
    stage = ScoringStage(
        decode,
        scores,
        batch_size=batch_size,
        linger_s=settings.worker.linger_ms / 1000,
        decode_threads=max(threads.decoding, fetch.threads if fetch else 0),
        # What one message refers to must not wait for what others do.
        parcel_messages=1 if fetch else PARCEL_MESSAGES,
        max_decoded_images=settings.worker.max_in_hand_images,
        max_decoded_bytes=settings.worker.max_in_hand_bytes // 2,
        clock=clock,
        observe=counters.observe,
        traced=tracing.is_on,
    )
    evidence = None
    if settings.evidence.root is not None:
        evidence = EvidenceKeeper(
            store_at(settings.evidence.root),
            settings.evidence,
            workers=settings.worker.at_most,
            note=counters.note_evidence,
            clock=clock,
        )
    try:
        yield WorkerLine(
            open_source,
            stage=stage,
            log=ScoredLog(store_at(settings.log.root), writer, clock),
            dead_letters=dead_letters,
            reporter=reporter,
            summarise=lambda segment, rows, gap: summarise(segment, rows, shape, gap),
            log_settings=settings.log,
            worker_settings=settings.worker,
            clock=clock,
            counters=counters,
            resume_from=settings.kafka.resume_from,
            reading_waits_for=lambda: reader.waiting_for if reader else None,
            evidence=evidence,
            tracing=tracing,
        )
    finally:
        if evidence is not None:
            evidence.close(0.0)
        if reader is not None:
            # First, so that nobody waits any longer in the threads that the stage ends.
            reader.close()
        stage.close()


def replicas(loaded: LoadedModel, count: int) -> list[LoadedModel]:
    """A model for each thread: what reads the feature map is for one thread at a time.

    Just the model itself, with a warning in the log, where it is for one thread alone.
    """
    try:
        return [loaded, *(loaded.replica() for _ in range(count - 1))]
    except ModelError as error:
        structlog.get_logger().warning("one_batch_in_flight", cause=error.problem)
        return [loaded]
