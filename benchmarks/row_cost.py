"""What a row costs beside its decoding and its forward pass: each step alone, in one thread.

    python -m benchmarks.row_cost [--rounds 9] [--batch 128]

CIFAR-10's images come in Arrow messages of 64, or one a message, through the stages of a worker and
into a segment in a folder. Times are of the processor, per row, medians over the rounds. Decoding
is simplejpeg's of the bytes alone, the forward pass that of the model on a batch that is normalised
already. Fetching from Kafka, and what threads cost each other, are in `benchmarks.throughput`.
"""

import argparse
import gc
import io
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch

from benchmarks.throughput_line import PROJECT, Line, run_peer
from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import base_scores_of
from nap_stream.clock import SystemClock
from nap_stream.decode.arrow import ARROW_STREAM
from nap_stream.model.execution import computing
from nap_stream.model.lane import open_lane
from nap_stream.model.load import load_model
from nap_stream.model.preprocessing import default_batch_size
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.records import DecodedRows, Message, TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores import store_at
from nap_stream.scored_log.summary import SummaryShape, summarise
from nap_stream.settings.load import load_model_settings
from nap_stream.settings.schema import LimitSettings
from tests.support.shared_data import shared_data

IMAGES, PER_MESSAGE, IN_HAND = 6_400, 64, 640
ALLOWED_US = 40.0
DECODING = "message to pixels and columns; less simplejpeg"
PARTITION = TopicPartition("images", 0)
Times = dict[str, list[float]]
A = TypeVar("A")
B = TypeVar("B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="images; a worker's default unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="row-cost-") as folder:
        worker = _Worker(Path(folder), arguments.batch)
        ways = {"Arrow messages of 64": PER_MESSAGE, "one image a message": 1}
        found = {name: worker.measure(size, arguments.rounds) for name, size in ways.items()}
    gc.unfreeze()
    steps = next(iter(found.values()))
    print("| µs of the processor a row | " + " | ".join(found) + " |")
    print("|---|" + "---|" * len(found))
    for step in steps:
        print(f"| {step} | " + " | ".join(f"{times[step]:.1f}" for times in found.values()) + " |")
    totals = [sum(times[step] for step in steps if step != DECODING) for times in found.values()]
    print("| **all but decoding** | " + " | ".join(f"**{total:.1f}**" for total in totals) + " |")
    print(
        f"\nScoring, judging and writing a row: at most {max(totals):.1f} µs, asked {ALLOWED_US:g}."
    )
    raise SystemExit(0 if max(totals) <= ALLOWED_US else 1)


class _Worker:
    """A worker's stages, for one thread, with a model that costs next to nothing."""

    def __init__(self, folder: Path, batch_size: int | None) -> None:
        table = pq.read_table(shared_data("cifar10_test.parquet"), columns=["image"])
        photos, decided, weights = (folder / name for name in ("photos", "decided", "weights.pt"))
        pq.write_table(table.slice(0, 2_000), photos)
        paths = {"photos": str(photos), "decided": str(decided), "weights": str(weights)}
        task = {"task": "prepare", "network": "free32", "keep": 1_000} | paths
        run_peer(task, folder, sys.executable)
        calibrated = Line(PROJECT, folder).calibrate(
            "free32", (weights, decided), "calibrated", preprocessing={}, method=None
        )
        settings = load_model_settings(calibrated / "model.yaml")
        batch_size = batch_size or default_batch_size(settings.preprocessing)
        self._batch_size = batch_size
        self._calibration = load_calibration(calibrated / "calibration")
        self._model = load_model(
            settings,
            torch.device("cpu"),
            self._calibration.document.execution,
            batch_size=batch_size,
        )
        # As a worker does once it is ready.
        gc.collect()
        gc.freeze()
        self._images = list(islice(cycle(table["image"].to_pylist()), IMAGES))
        clock = SystemClock()
        self._decode = MessageDecoder(
            preprocessing=self._model.preprocessing,
            limits=LimitSettings(),
            kept_headers=(),
            clock=clock,
        )
        lane = open_lane(
            self._model, base_scores_of(self._calibration, self._model), batch_size=batch_size
        )
        self._rows = RowScorer(
            score_images=lane,
            class_names=self._model.class_names,
            calibration=self._calibration,
            clock=clock,
        )
        writer = WriterIdentity("benchmark", self._model.fingerprint, "0" * 64)
        self._folder, self._writer = folder, writer

    def measure(self, per_message: int, rounds: int) -> dict[str, float]:
        """Microseconds a row of each step."""
        messages = _messages(self._images, per_message)
        times: Times = defaultdict(list)
        for number in range(rounds + 1):
            self._one_round(messages, times, f"log-{per_message}-{number}")
        # The first one warms up.
        return {
            name: 1e6 * statistics.median(values[1:]) / IMAGES for name, values in times.items()
        }

    def _one_round(self, messages: Sequence[Message], times: Times, name: str) -> None:
        """Take as many images in hand at once as a worker does by default."""
        rows: list[pa.RecordBatch] = []
        decode_s = score_s = 0.0
        step = IN_HAND * len(messages) // IMAGES
        for start in range(0, len(messages), step):
            part = messages[start : start + step]
            taken, decoded = _timed(self._decode, part)
            images = self._images[start * IN_HAND // step :][:IN_HAND]
            alone, _ = _timed(simplejpeg.decode_jpeg, images)
            decode_s += taken - alone
            batches = list(_batches(decoded, self._batch_size))
            taken, scored = _timed(self._rows, batches)
            score_s += taken - self._forward_s(batches)
            rows.extend(scored)
        times[DECODING].append(decode_s)
        times["stack, normalise, score, judge, lay out; less the forward pass"].append(score_s)
        log = ScoredLog(store_at(self._folder / name), self._writer, SystemClock())
        begin = log.begin(PARTITION, 0)
        table = pa.Table.from_batches(rows)
        taken, (segment,) = _timed(
            lambda rows: log.publish(PARTITION, begin, len(messages), rows), [table]
        )
        times["write a segment"].append(taken)
        taken, _ = _timed(
            lambda rows: summarise(segment, rows, SummaryShape(1_000, 5, None)), [table]
        )
        times["summary"].append(taken)

    def _forward_s(self, batches: Sequence[Sequence[DecodedRows]]) -> float:
        """Seconds of the model alone, as it was calibrated, on what it takes."""
        model = self._model
        layout = torch.channels_last if model.execution.channels_last else torch.contiguous_format
        stacked = [
            torch.stack([i for rows in batch for i in rows.pixels if isinstance(i, torch.Tensor)])
            for batch in batches
        ]
        inputs = [
            model.normalise(part.contiguous(memory_format=layout)).to(model.input_dtype)
            for batch in stacked
            for part in torch.split(batch, self._batch_size)
        ]
        with torch.inference_mode(), computing(model.execution, model.device):
            taken, _ = _timed(model.module, inputs)
        return taken


def _timed(step: Callable[[A], B], values: Sequence[A]) -> tuple[float, list[B]]:
    """Seconds of the processor that a step takes for all values, and what it gives."""
    started = time.process_time()
    found = [step(value) for value in values]
    return time.process_time() - started, found


def _messages(images: Sequence[bytes], per_message: int) -> list[Message]:
    now_ms = SystemClock().now_ms()
    headers: tuple[tuple[str, bytes], ...]
    values, headers = list(images), ()
    if per_message > 1:
        values = [_arrow_stream(images[i : i + per_message]) for i in range(0, IMAGES, per_message)]
        headers = (("content-type", ARROW_STREAM.encode()),)
    return [
        Message(PARTITION, offset, now_ms, b"camera-1", value, headers)
        for offset, value in enumerate(values)
    ]


def _arrow_stream(images: Sequence[bytes]) -> bytes:
    batch = pa.record_batch({"image": pa.array(images, pa.binary())})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _batches(decoded: Sequence[DecodedRows], batch_size: int) -> Iterator[Sequence[DecodedRows]]:
    size = max(1, batch_size // len(decoded[0]))
    for start in range(0, len(decoded), size):
        yield decoded[start : start + size]


if __name__ == "__main__":
    main()
