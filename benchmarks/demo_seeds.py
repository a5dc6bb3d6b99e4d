"""The demo's outcome over many seeds, each with a split, a training and a stream of its own.

    python -m benchmarks.demo_seeds [--seeds 150] [--first 1000] [--processes 1]
        [--method fisher-knn] [--out seeds.jsonl]

It does what `nap-stream demo` does, without broker, Ray and waiting: the demo's own functions make
images, model, settings and calibration, and judge what came of it. Messages are scored as a worker
scores them, in the order in which the demo sends them, with event times as far apart as its rate
has them. They go into a scored log of one partition, since verdicts do not depend on how many there
are, and `replay` gives the alerts. Delays are in records, at the grain of a pane, which holds 5.
``--out`` gets a line a seed; the seeds that it has are not done again. Exit code 1 if the outcome
of a seed was not as it must be.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console

from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.core.alert_state import Reason
from nap_stream.demo.digits import (
    BROKEN,
    CAMERA_HEADER,
    DIGIT,
    Phase,
    StreamImage,
    one_torch_thread,
    png,
)
from nap_stream.demo.display import Display
from nap_stream.demo.outcome import AlertSeen, Outcome, check_outcome, read_alert, read_images
from nap_stream.demo.setup import (
    demo_folder,
    make_calibration,
    make_model_and_images,
    write_configuration,
)
from nap_stream.model.lane import open_lane
from nap_stream.model.load import load_model
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.records import Message, TopicPartition
from nap_stream.replay import EventSpan, replay
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.verify.run import verify
from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings

DEFAULT = "auto"
STREAM = "stream"
STEP_MS = 20
"""Of the demo's default rate, 50 images a second."""
START_MS = 1_767_268_800_000
SEGMENT = 50
"""Records, of a second."""


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What came of a seed.

    ``began`` and ``ended`` have the delay of each alert in records, after the change and after the
    return, by camera; that of the stream stands at "stream". ``flagged`` are the shares of digits
    and of other images that were flagged. ``weights`` are of the method auto. ``wrong`` are the
    demo's checks that do not hold.
    """

    seed: int
    method: str
    weights: dict[str, float] | None
    flagged: tuple[float, float]
    began: dict[str, list[int]]
    ended: dict[str, list[int]]
    wrong: list[str]
    seconds: float


def main() -> int:
    arguments = _arguments()
    done = _read(arguments.out, arguments.method)
    wanted = range(arguments.first, arguments.first + arguments.seeds)
    left = [seed for seed in wanted if seed not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        for task in as_completed([pool.submit(run_seed, s, arguments.method) for s in left]):
            result = task.result()
            done[result.seed] = result
            print(f"{sum(s in done for s in wanted)} of {len(wanted)}: {_line(result)}", flush=True)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    return print_summary([done[seed] for seed in wanted])


def run_seed(seed: int, method: str) -> SeedResult:
    """Make one demo, in a folder that goes again."""
    started, clock = time.monotonic(), SystemClock()
    display = Display(Console(quiet=True), clock)
    with (
        tempfile.TemporaryDirectory() as name,
        one_torch_thread(),
        demo_folder(Path(name)) as folder,
    ):
        phases = make_model_and_images(folder, seed, display)
        write_configuration(folder, broker="localhost:9092", metrics_port=0, workers=1)
        if method != DEFAULT:
            with folder.config.open("a", encoding="utf-8") as file:
                file.write(f"scoring:\n  method: {method}\n")
        calibration = make_calibration(folder, display, clock)
        document, settings = calibration.document, load_settings(folder.config, environ={})
        _write_log(settings, calibration, [image for phase in phases for image in phase.images])
        outcome = _outcome(settings, calibration, phases)
    alerts = [read_alert(event) for event in outcome.alerts]
    return SeedResult(
        seed=seed,
        method=document.method,
        weights=document.weights,
        flagged=(_flagged(outcome, digits=True), _flagged(outcome, digits=False)),
        began=_delays(alerts, Reason.BEGAN, outcome.changed_ms),
        ended=_delays(alerts, Reason.ENDED, outcome.returned_ms),
        wrong=[f"{c.claim} ({c.found})" for c in check_outcome(outcome) if not c.holds],
        seconds=time.monotonic() - started,
    )


def _write_log(settings: Settings, calibration: Calibration, images: Sequence[StreamImage]) -> None:
    """Score the stream as a worker does, and publish a segment for each of its seconds."""
    partition, clock = TopicPartition(settings.kafka.topic, 0), ManualClock(START_MS)
    loaded = load_model(settings.model, torch.device("cpu"), calibration.document.execution)
    decode = MessageDecoder(
        preprocessing=loaded.preprocessing,
        limits=settings.limits,
        kept_headers=settings.log.headers,
        clock=clock,
    )
    score = RowScorer(
        score_images=open_lane(loaded, base_scores_of(calibration, loaded), batch_size=SEGMENT),
        class_names=loaded.class_names,
        calibration=calibration,
        clock=clock,
    )
    writer = WriterIdentity("demo_seeds", loaded.fingerprint, calibration.fingerprint)
    log = ScoredLog(store_at(settings.log.root), writer, clock)
    position = log.begin(partition, 0)
    for start in range(0, len(images), SEGMENT):
        decoded = [
            decode(_message(partition, offset, image))
            for offset, image in enumerate(images[start : start + SEGMENT], start)
        ]
        rows = pa.Table.from_batches([score(decoded)])
        position = log.publish(partition, position, start + len(decoded), rows).position


def _message(partition: TopicPartition, offset: int, image: StreamImage) -> Message:
    headers = ((CAMERA_HEADER, image.camera.encode()),)
    time_ms = START_MS + STEP_MS * offset
    return Message(partition, offset, time_ms, image.name.encode(), png(image.pixels), headers)


def _outcome(settings: Settings, calibration: Calibration, phases: Sequence[Phase]) -> Outcome:
    """Replay the log, and gather what the demo judges."""
    events: list[Mapping[str, Any]] = []
    store = store_at(settings.log.root)
    replay(
        store,
        settings,
        calibration.facts,
        span=EventSpan(),
        on_alert=lambda alert: events.append(alert.event),
        advance=lambda _done, _total: None,
    )
    before, mixed, _ = (len(phase.images) for phase in phases)
    return Outcome(
        alerts=events,
        changed_ms=START_MS + STEP_MS * before,
        returned_ms=START_MS + STEP_MS * (before + mixed),
        sent=[image.name for phase in phases for image in phase.images],
        logged=read_images(Path(settings.log.root), settings.kafka.topic),
        report=verify(store, deep=True),
        exit_code=0,
    )


def _flagged(outcome: Outcome, *, digits: bool) -> float:
    flags = [bool(i.is_ood) for i in outcome.logged if (i.kind == DIGIT) == digits]
    return sum(flags) / len(flags)


def _delays(alerts: Sequence[AlertSeen], reason: Reason, since_ms: int) -> dict[str, list[int]]:
    delays: dict[str, list[int]] = {}
    for alert in alerts:
        if alert.reason == reason and alert.time_ms is not None:
            records = (alert.time_ms - since_ms) // STEP_MS
            delays.setdefault(alert.key or STREAM, []).append(records)
    return delays


def _line(result: SeedResult) -> str:
    verdict = "; ".join(result.wrong) or "as expected"
    digits, others = result.flagged
    return (
        f"seed {result.seed}, {result.method}: {verdict}; firing {result.began}, resolved "
        f"{result.ended}; flagged {digits:.1%} of digits, {others:.1%} of others; "
        f"weights {result.weights}; {result.seconds:.0f} s"
    )


def print_summary(results: Sequence[SeedResult]) -> int:
    """Print what all seeds gave, and each that differs; the exit code."""
    wrong = [result for result in results if result.wrong]
    print(f"\n{len(results) - len(wrong)} of {len(results)} seeds: exactly the expected outcome.")
    for name in (STREAM, *BROKEN):
        for event, delays in (
            ("firing, records after the change", [r.began.get(name, []) for r in results]),
            ("resolved, records after the return", [r.ended.get(name, []) for r in results]),
        ):
            firsts = [each[0] for each in delays if each] or [0]
            print(
                f"{name} {event}: {mean(firsts):.0f} on average, {min(firsts)} to {max(firsts)}; "
                f"{delays.count([])} never, {sum(len(each) > 1 for each in delays)} more than once"
            )
    digits, others = (mean(result.flagged[share] for result in results) for share in (0, 1))
    print(f"Flagged on average: {digits:.1%} of digits, {others:.1%} of others.")
    for result in wrong:
        print(f"DIFFERS: {_line(result)}")
    return 1 if wrong else 0


def _read(path: Path | None, method: str) -> dict[int, SeedResult]:
    if path is None or not path.exists():
        return {}
    trees = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {t["seed"]: SeedResult(**t) for t in trees if t["method"] == method}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--first", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--method", default=DEFAULT, help="of scoring, in place of the default")
    parser.add_argument("--out", type=Path, help="a line of JSON for each seed; what is done stays")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
