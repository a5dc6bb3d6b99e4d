"""A worker in a process of its own: the real line, told by an injector where to fail."""

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import structlog
import torch

from nap_stream.clock import SystemClock
from nap_stream.errors import NapStreamError
from nap_stream.model.lane import CpuTransport, Lane
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.preprocessing import input_size
from nap_stream.monitor.worker import replicas
from nap_stream.pipeline.commits import WorkerCounters
from nap_stream.pipeline.line import WorkerLine
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.pipeline.scoring import ScoringStage
from nap_stream.process import configure_logging, stop_on_signals
from nap_stream.records import PublishedSegment, SegmentSummary
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.summary import SummaryShape, summarise
from nap_stream.settings.log import LogSettings
from nap_stream.settings.run import WorkerSettings
from nap_stream.settings.schema import (
    KafkaSettings,
    LimitSettings,
    ModelSettings,
    PreprocessingSettings,
)
from tests.faults.failpoints import Failpoint, Fault, Injector
from tests.faults.harness_parts import (
    FaultyDeadLetters,
    FaultyLog,
    FaultyObjects,
    FaultyOperations,
    FaultyReporter,
    FaultySource,
    faulty,
)
from tests.support.small_calibration import calibration_of, scorer_of
from tests.support.tiny_net import CLASS_NAMES

CLOSE_S = 10.0
TYPED_ERROR = 3
"""Exit code of a worker that ended with an error of nap-stream's own."""

BATCH_SIZE, SCORING_THREADS = 4, 2
MAX_IN_HAND = 12
PREPROCESSING = PreprocessingSettings(resize=None, crop=16)
_PR_SET_PDEATHSIG = 1
_PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one process is to do.

    ``record`` and ``output`` are files: of what has fired, and of stdout and stderr.
    """

    kafka: KafkaSettings
    dead_letter_topic: str
    log_root: Path | str
    name: str
    incarnation: int
    segment_max_age_s: float
    faults: tuple[Fault, ...]
    record: Path
    output: Path


def work(spec: WorkerSpec) -> None:
    """Run the worker's line until SIGTERM; the entry point of the process."""
    descriptor = os.open(spec.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    configure_logging(for_people=True)
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    # The fork server ends with whoever started it. One that is stopped must go then, too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with stop_on_signals() as stop:
        try:
            _run(spec, stop.is_set)
        except NapStreamError as error:
            structlog.get_logger().error("worker_failed", cause=f"{type(error).__name__}: {error}")
            sys.exit(TYPED_ERROR)


def _run(spec: WorkerSpec, should_stop: Callable[[], bool]) -> None:
    injector = Injector(spec.faults, spec.record)
    clock = SystemClock()
    loaded = load_model(model_settings(), torch.device("cpu"))
    counters = WorkerCounters(spec.name, spec.incarnation)
    decode = MessageDecoder(
        preprocessing=PREPROCESSING, limits=LimitSettings(), kept_headers=(), clock=clock
    )
    scores = [
        faulty(_row_scorer(own), injector, Failpoint.SCORE_BEFORE, Failpoint.SCORE_AFTER)
        for own in replicas(loaded, SCORING_THREADS)
    ]
    with ExitStack() as stack:
        dead_letters = FaultyDeadLetters(
            spec.kafka, spec.dead_letter_topic, max_payload_bytes=2**20, injector=injector
        )
        stack.callback(dead_letters.close)
        stage = ScoringStage(
            faulty(decode, injector, Failpoint.DECODE_BEFORE, Failpoint.DECODE_AFTER),
            scores,
            batch_size=BATCH_SIZE,
            linger_s=0.005,
            decode_threads=2,
            max_decoded_images=MAX_IN_HAND,
            clock=clock,
            observe=counters.observe,
        )
        stack.callback(stage.close)
        line = WorkerLine(
            lambda listener: FaultySource(
                spec.kafka, listener, instance_id=spec.name, injector=injector
            ),
            stage=stage,
            log=FaultyLog(_log(spec, loaded, injector), injector),
            dead_letters=dead_letters,
            reporter=FaultyReporter(injector),
            summarise=_summary,
            log_settings=LogSettings(
                root=spec.log_root, segment_max_rows=12, segment_max_age_s=spec.segment_max_age_s
            ),
            worker_settings=WorkerSettings(
                max_in_hand_images=MAX_IN_HAND,
                revoke_deadline_s=spec.kafka.session_timeout_s / 2,
            ),
            clock=clock,
            counters=counters,
        )
        line.run(should_stop, CLOSE_S)


def model_settings() -> ModelSettings:
    """The tiny net."""
    return ModelSettings(
        factory="tests.support.tiny_net:build",
        python_path=(_PROJECT,),
        class_names=CLASS_NAMES,
        preprocessing=PREPROCESSING,
    )


def _row_scorer(loaded: LoadedModel) -> RowScorer:
    return RowScorer(
        score_images=Lane(
            scorer_of(loaded),
            CpuTransport(),
            batch_size=BATCH_SIZE,
            size=input_size(loaded.preprocessing),
        ),
        class_names=loaded.class_names,
        calibration=calibration_of((0.5, 1.0, 1.5, 2.0), (1.0, 1.5, 2.0, 2.5)),
        clock=SystemClock(),
    )


def _log(spec: WorkerSpec, loaded: LoadedModel, injector: Injector) -> ScoredLog:
    return ScoredLog(
        FaultyObjects(spec.log_root, injector)
        if isinstance(spec.log_root, str)
        else LocalStore(spec.log_root, FaultyOperations(injector)),
        WriterIdentity(
            f"{spec.name}.{spec.incarnation}@{os.getpid()}", loaded.fingerprint, "1" * 64
        ),
        SystemClock(),
    )


def _summary(segment: PublishedSegment, rows: pa.Table, gap: str | None) -> SegmentSummary:
    return summarise(segment, rows, SummaryShape(100, 3), gap)
