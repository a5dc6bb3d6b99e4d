"""What this machine, this model and these images give: its parts alone, and the whole line.

Nothing of Kafka is needed or measured: messages come from memory, and the log goes to a temporary
folder.
"""

import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.clock import Clock, Progress
from nap_stream.core.base_scores import BaseScores
from nap_stream.errors import InputDataError, ModelError
from nap_stream.image_files import iter_images
from nap_stream.model.execution import precisions_of
from nap_stream.model.facts import Execution
from nap_stream.model.load import LoadedModel, OnePassScorer, load_model
from nap_stream.monitor.worker import (
    Threads,
    batch_size_of,
    load_calibrated,
    open_line,
    replicas,
)
from nap_stream.pipeline.commits import WorkerCounters
from nap_stream.pipeline.rows import MessageDecoder
from nap_stream.process import available_cpus
from nap_stream.records import (
    TIME_PARTS,
    FailedImage,
    Fetched,
    Message,
    PartitionOffsets,
    SegmentSummary,
    TimePart,
    TopicPartition,
    WorkerReport,
)
from nap_stream.settings.run import cpus_a_worker
from nap_stream.settings.schema import Settings
from nap_stream.source.base import PartitionListener
from nap_stream.text import described

PARTITION = TopicPartition("bench", 0)
WARM_UP_BATCHES = 1
ROUNDS = 3
MOST_IMAGES = 500
"""Files that are read, and kept in memory, at most."""
MADE_UP = 64
FED_WELL = 0.9
"""Share of what the model alone does from which on nothing else is worth a change."""


@dataclass(frozen=True, slots=True)
class LineRate:
    """What the whole line gave: images a second, and the shares of the scoring threads' time."""

    images_per_second: float
    shares: Mapping[TimePart, float]


@dataclass(frozen=True, slots=True)
class ForwardRate:
    """Images a second of the model alone under an execution; None with the problem it had."""

    execution: str
    images_per_s: float | None
    in_use: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What one worker gives on this machine. Rates are images a second.

    ``forward`` is the model alone, ``model`` the rate of the execution in use, ``feed`` decoding
    alone. ``images`` were given, ``undecodable`` of them cannot be read.
    """

    images: int
    undecodable: int
    device: str
    batch_size: int
    num_cpus: int
    threads: Threads
    forward: tuple[ForwardRate, ...]
    feed: float
    line: LineRate
    advice: str

    @property
    def model(self) -> float:
        """The rate of the model alone, as it runs."""
        return next((row.images_per_s or 0.0 for row in self.forward if row.in_use), 0.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"model": self.model}


def load_images(path: Path | None) -> list[bytes]:
    """Image files, `MOST_IMAGES` at most; made-up photos without a path.

    Raises:
        InputDataError: There is no such path, or it holds nothing.
    """
    if path is not None:
        return [file.data for file in islice(iter_images(path), MOST_IMAGES)]
    random = np.random.default_rng(0)
    return [_photo(random) for _ in range(MADE_UP)]


def _photo(random: np.random.Generator) -> bytes:
    """A JPEG as large as one of a photo of this size: smooth shapes, and noise."""
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + random.integers(-24, 25, smooth.shape, dtype=np.int16)
    buffer = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def measure(
    settings: Settings,
    images: Sequence[bytes],
    *,
    device: torch.device,
    seconds: float,
    clock: Clock,
    progress: Progress,
) -> BenchResult:
    """Measure a worker's parts and its whole line, each for so many seconds.

    ``progress`` is told how many parts of how many are done.

    Raises:
        NapStreamError: The model or its calibration cannot be loaded, or no image be decoded.
    """
    if settings.model.elsewhere is not None:
        raise ModelError(
            f"the model {settings.model.origin} runs elsewhere: there is no forward pass here, and "
            "no image is decoded",
            settings.model.where,
            "Measure the model where it runs; scoring its outputs takes little beside that",
        )
    num_cpus = cpus_a_worker(settings.worker, available_cpus())
    calibration, loaded, threads = load_calibrated(settings, device, num_cpus)
    assert isinstance(loaded, LoadedModel), "of a model that runs here"
    written_out = settings.model.model_copy(update={"preprocessing": loaded.preprocessing})
    settings = settings.model_copy(update={"model": written_out})
    pixels, undecodable = decode_once(settings, images, clock)
    batch_size = batch_size_of(settings.worker, loaded.preprocessing)
    batch = _repeated(pixels, batch_size)
    base_scores = base_scores_of(calibration, loaded)
    passes = {
        one: model if isinstance(model, str) else _passes(model, base_scores, batch, threads)
        for one, model in _models(settings, loaded).items()
    }
    parts = len(passes) * ROUNDS + 2
    rates: dict[Execution, list[float | str]] = {one: [] for one in passes}
    # Alternating, because what else the machine does comes and goes.
    for number, (_, (one, steps)) in enumerate(product(range(ROUNDS), passes.items())):
        progress(number, parts)
        in_use = one == loaded.execution
        rates[one].append(_tried(steps, seconds / ROUNDS, clock, in_use=in_use))
    rows = [
        _forward_row(one, found, in_use=one == loaded.execution) for one, found in rates.items()
    ]
    progress(parts - 2, parts)
    feed = feed_rate(settings, images, threads=threads.decoding, seconds=seconds, clock=clock)
    progress(parts - 1, parts)
    line = line_rate(
        settings, loaded, calibration, images, threads=threads, seconds=seconds, clock=clock
    )
    progress(parts, parts)
    return BenchResult(
        images=len(images),
        undecodable=undecodable,
        device=str(device),
        batch_size=batch_size,
        num_cpus=num_cpus,
        threads=threads,
        forward=tuple(rows),
        feed=feed,
        line=line,
        advice=advice(settings, line, rows[-1].images_per_s or 0.0, feed),
    )


def _models(settings: Settings, loaded: LoadedModel) -> dict[Execution, LoadedModel | str]:
    """The model under each execution, the one in use last, or why it does not run so.

    They are plain float32, and each precision in the memory format that suits most models.
    """
    plain = load_model(settings.model, loaded.device)
    models: dict[Execution, LoadedModel | str] = {plain.execution: plain}
    for precision in precisions_of(loaded.device):
        execution = Execution(precision, channels_last=True)
        try:
            models[execution] = plain.under(execution)
        except ModelError as error:
            models[execution] = error.problem
    models.pop(loaded.execution, None)
    return models | {loaded.execution: loaded}


def _passes(
    loaded: LoadedModel, base_scores: BaseScores, batch: torch.Tensor, threads: Threads
) -> list[Callable[[], int]]:
    """For each scoring thread what scores one batch: the forward pass and the scores alone."""
    models = replicas(loaded, threads.scoring)
    return [_scoring(OnePassScorer(own, base_scores), batch) for own in models]


def _tried(
    steps: Sequence[Callable[[], int]] | str, seconds: float, clock: Clock, *, in_use: bool
) -> float | str:
    """Images a second, or what is wrong."""
    if isinstance(steps, str):
        return steps
    try:
        for step in steps:
            for _ in range(WARM_UP_BATCHES):
                step()
        return _rate(steps, seconds, clock)
    # What a model raises in a precision that it was not made for.
    except Exception as error:
        if in_use:
            raise
        return described(error)


def _forward_row(
    execution: Execution, found: Sequence[float | str], *, in_use: bool
) -> ForwardRate:
    problem = next((text for text in found if isinstance(text, str)), "")
    rates = [rate for rate in found if not isinstance(rate, str)]
    rate = None if problem else median(rates)
    return ForwardRate(str(execution), rate, in_use, problem)


def decode_once(
    settings: Settings, images: Sequence[bytes], clock: Clock
) -> tuple[list[torch.Tensor], int]:
    """The images at the model's input size, and how many cannot be decoded.

    Raises:
        InputDataError: None can.
    """
    decode = _decoder(settings, clock)
    decoded = [decode(message) for message in _messages(images, 0, len(images), clock)]
    images_of = (image for rows in decoded for image in rows.pixels)
    pixels = [image for image in images_of if isinstance(image, torch.Tensor)]
    if not pixels:
        error = decoded[0].columns["error"][0]
        raise InputDataError(f"none of {len(images)} images can be decoded: {error}", "--images")
    return pixels, sum(len(rows.failed) for rows in decoded)


def _repeated(pixels: Sequence[torch.Tensor], batch_size: int) -> torch.Tensor:
    """A batch of images, repeated where there are fewer, interleaved as a worker's are."""
    images = islice(cycle(pixels), batch_size)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def feed_rate(
    settings: Settings, images: Sequence[bytes], *, threads: int, seconds: float, clock: Clock
) -> float:
    """Images a second of decoding, resizing and cropping alone, in so many threads."""
    decode = _decoder(settings, clock)
    messages = _messages(images, 0, len(images), clock)

    def stepper() -> Callable[[], int]:
        own = cycle(messages)
        return lambda: len(decode(next(own)))

    return _rate([stepper() for _ in range(threads)], seconds, clock)


def line_rate(
    settings: Settings,
    loaded: LoadedModel,
    calibration: Calibration,
    images: Sequence[bytes],
    *,
    threads: Threads,
    seconds: float,
    clock: Clock,
) -> LineRate:
    """What one worker's whole line gives but for Kafka: decode, score, judge, log, summarise."""
    reporter = _Reporter(clock)
    with tempfile.TemporaryDirectory(prefix="nap-stream-bench-") as folder:
        log = settings.log.model_copy(update={"root": Path(folder)})
        with open_line(
            settings.model_copy(update={"log": log}),
            loaded,
            calibration,
            threads=threads,
            open_source=lambda listener: _Endless(images, listener, clock),
            dead_letters=_NoDeadLetters(),
            reporter=reporter,
            counters=WorkerCounters("bench", 0),
            writer_id="bench",
            clock=clock,
        ) as line:
            line.run(lambda: reporter.lasted_s() >= seconds, deadline_s=30.0)
    return reporter.rate()


def advice(settings: Settings, line: LineRate, forward: float, feed: float) -> str:
    """Which setting to change first, in one sentence."""
    shares = line.shares
    if line.images_per_second >= FED_WELL * forward:
        return (
            "The model is the limit. A faster precision, model.compile, a GPU or more workers "
            "help; nothing else does."
        )
    if shares["log"] > max(shares["decode"], shares["messages"]):
        return (
            "The log holds the line up. Let segments grow (log.segment_max_age_s, "
            "log.segment_max_rows), or see whether the disk of "
            "log.root is faster than that of temporary files, which this was measured on."
        )
    scales = settings.model.preprocessing.scaled_decoding
    scaled = "" if scales else "model.preprocessing.scaled_decoding (large JPEGs), "
    if shares["decode"] > shares["model"] or feed < forward:
        return (
            f"Decoding is the limit: {scaled}more CPUs for it (worker.num_cpus, "
            "worker.decode_threads), or smaller images from the producer help."
        )
    return (
        "The parts share the same processors, and the model has what the others leave: more CPUs "
        f"(worker.num_cpus, worker.count) or a GPU, {scaled}smaller images, or several images a "
        "message help."
    )


def _decoder(settings: Settings, clock: Clock) -> MessageDecoder:
    """The CPU's: what a GPU decodes is a part of the whole line."""
    return MessageDecoder(
        preprocessing=settings.model.preprocessing.model_copy(update={"jpeg_decoder": "cpu"}),
        limits=settings.limits,
        kept_headers=(),
        clock=clock,
    )


def _messages(images: Sequence[bytes], start: int, count: int, clock: Clock) -> tuple[Message, ...]:
    now_ms = clock.now_ms()
    return tuple(
        Message(PARTITION, offset, now_ms, None, images[offset % len(images)])
        for offset in range(start, start + count)
    )


def _scoring(scorer: OnePassScorer, batch: torch.Tensor) -> Callable[[], int]:
    return lambda: len(scorer(batch).class_id)


def _rate(steps: Sequence[Callable[[], int]], seconds: float, clock: Clock) -> float:
    """What steps do a second, each again and again in a thread of its own."""
    done, errors = [0] * len(steps), []
    started = clock.monotonic()
    until = started + seconds

    def work(number: int) -> None:
        try:
            while clock.monotonic() < until:
                done[number] += steps[number]()
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(steps))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(done) / (clock.monotonic() - started)


class _Endless:
    """A source whose one partition has no end: the images, again and again."""

    def __init__(self, images: Sequence[bytes], listener: PartitionListener, clock: Clock) -> None:
        self._images, self._listener, self._clock = images, listener, clock
        self._offset: int | None = None
        self._paused = False

    def poll(self, timeout_s: float, max_messages: int) -> list[Fetched]:
        """As many messages as are asked for."""
        if self._offset is None:
            offsets = PartitionOffsets(PARTITION, 0, 2**62, None, None)
            self._offset = self._listener.assigned(offsets)
        if self._offset is None or self._paused:
            self._clock.sleep(timeout_s)
            return []
        start, self._offset = self._offset, self._offset + max_messages
        messages = _messages(self._images, start, max_messages, self._clock)
        return [Fetched(PARTITION, messages, self._offset)]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from an offset."""
        assert partition == PARTITION
        self._offset = offset

    def pause(self) -> None:
        """Give nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Give messages again."""
        self._paused = False

    def commit(self, offsets: Mapping[TopicPartition, int], timeout_s: float = 0.0) -> bool:  # noqa: ARG002  as `Source`
        """There is no group."""
        return True

    def commit_soon(self, offsets: Mapping[TopicPartition, int]) -> None:
        """There is no group."""

    def lag(self, partition: TopicPartition) -> int | None:  # noqa: ARG002  as `Source`
        """There is always more."""
        return None

    def away(self) -> str | None:
        """It is in memory."""
        return None

    def settled(self) -> bool:
        """It never is: there is always more."""
        return False

    def left_out(self) -> Mapping[TopicPartition, str]:
        """It has one topic."""
        return {}

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


class _NoDeadLetters:
    """Takes failed images, and forgets them."""

    def send(self, image: FailedImage) -> None:
        """Forget it."""

    def flush(self, timeout_s: float) -> None:
        """Nothing is on its way."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass(slots=True)
class _Reporter:
    """Keeps what a line has reported since it came up to speed."""

    clock: Clock
    heard: list[tuple[float, WorkerReport]] = field(default_factory=list)

    def submit(self, summary: SegmentSummary) -> None:
        """Nobody watches for drift."""

    def report(self, report: WorkerReport) -> None:
        """Keep it, once images are scored."""
        if report.images_scored:
            self.heard.append((self.clock.monotonic(), report))

    def lasted_s(self) -> float:
        """For how long images have been scored."""
        return self.heard[-1][0] - self.heard[0][0] if self.heard else -math.inf

    def rate(self) -> LineRate:
        """Between the first report and the last one before the end."""
        (began, first), (ended, last) = self.heard[0], self.heard[-2]
        spent = [now - then for now, then in zip(last.time_parts, first.time_parts, strict=True)]
        whole = sum(spent) or 1.0
        shares = {part: seconds / whole for part, seconds in zip(TIME_PARTS, spent, strict=True)}
        images = last.images_scored - first.images_scored
        return LineRate(images / max(ended - began, 1e-9), shares)
