"""How fast the whole line is, beside the forward pass alone, the line of before, and its peers.

    python -m benchmarks.throughput [--before 8ac86ca] [--rounds 3] [--only resnet18 arrow]
    python -m benchmarks.throughput --only mobilenet_v3_large --ways now forward --json found.json
    python -m benchmarks.throughput --quick
    python -m benchmarks.throughput --peers-python PEERS/bin/python

Apache Kafka runs beside it; each case sends its images once, and its contenders read them in turn,
round by round. Rates are taken from the times in the scored log, of the middle 80 % of the rows
that all workers scored side by side; medians over the rounds. What was clearly slower than another
way of the line of before, or of the forward pass alone, is left out after the first round. CPU is
that of Ray's actors, the workers and the coordinator. The plain loop and Ray Data compute in
float32 and score with pytorch-ood's energy. Ray Data stands for the stream processors: it scores
batches in actors as the line does, where Quix Streams takes one message at a time. It needs what
benchmarks/throughput.txt names.

Cases are `resnet18` and `mobilenet_v3_large`, photos of 110 KB at 224 pixels; with a model that
costs nothing `photos`, the same photos; `small`, 32 x 32 JPEGs; `arrow`, these in Arrow messages of
64; `frames`, JPEGs of 12 megapixels, with scaled decoding where the line has it.

Each rate is said when it is there, and is in the JSON from then on: a run that is cut loses its
last contender alone. ``--ways`` leaves the other contenders out.
"""

import argparse
import json
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.throughput_line import (
    PROJECT,
    Line,
    RunFailedError,
    Topic,
    line_of,
    run_peer,
    send_images,
)
from benchmarks.throughput_peers import PRECISIONS
from tests.support.apache_kafka import ApacheKafka, resolve_jars
from tests.support.shared_data import shared_data

BEFORE = "8ac86ca"
QUICK_SHARE = 0.5
BEATEN = 0.85
"""Of the best way of the line of before, or of the forward pass alone: slower ways run once."""
ROW_CPU_US = 40.0
NOW, THEN, FORWARD = "nap-stream", "nap-stream of before", "forward alone"
LOOP, RAY_DATA = "plain loop, kafka-python and Pillow", "Ray Data, 2 actors"
_PHOTOS = "imagenet_sample200.parquet"
_CALIBRATION_PHOTOS = "imagenet_photos600.parquet"
_SMALL = "cifar10_test.parquet"
_FRAMES = 6
_FORWARD_WAYS = ((1, 2), (2, 1))
WAYS = ("now", "before", "forward", "loop", "ray")


@dataclass(frozen=True, slots=True)
class Case:
    """What is read with which network, and what is asked of the line.

    ``of_forward`` and ``of_before`` are the least ratios; None where nothing is asked.
    ``calibration_images`` and ``method`` keep calibrating shorter than measuring where the network
    is slow: there scoring is next to nothing beside the forward pass, by any method.
    """

    network: str
    images: int
    of_before: float | None
    of_forward: float | None = None
    images_per_message: int = 1
    calibration_images: int = 300
    method: str | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)


CASES = {
    "resnet18": Case("resnet18", 500, 2.5, 0.8, 1, 60, "energy"),
    "mobilenet_v3_large": Case("mobilenet_v3_large", 1_000, 2.5, 0.8, 1, 60, "energy"),
    "photos": Case("free224", 4_000, 1.6),
    "small": Case("free32", 25_000, None),
    "arrow": Case("free32", 60_000, 2.5, images_per_message=64),
    "frames": Case("free224", 100, 3.0, preprocessing={"scaled_decoding": True}),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The medians of a case, by contender; CPU only for nap-stream, in seconds a row."""

    case: str
    rates: dict[str, list[float]]
    cpu_s: dict[str, float]
    not_run: dict[str, str]

    def median(self, contender: str) -> float | None:
        """Images a second of a contender; None where it did not run."""
        return statistics.median(self.rates[contender]) if self.rates.get(contender) else None

    def best(self, kind: str) -> float | None:
        """The best median of the contenders whose name begins so."""
        medians = [self.median(name) for name in self.rates if name.partition(",")[0] == kind]
        return max((value for value in medians if value is not None), default=None)

    def beaten(self, contender: str) -> bool:
        """Whether another of its kind was so much faster that it need not run again."""
        own, best = self.median(contender), self.best(contender.partition(",")[0])
        return own is not None and best is not None and own < BEATEN * best


def main() -> None:
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing may outlive this
    started = time.monotonic()
    results: dict[str, Found] = {}

    def keep(found: Found) -> None:
        results[found.case] = found
        if arguments.json is not None:
            _write_json(arguments.json, results.values())

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nst-")))
        (folder / "kafka").mkdir()
        kafka = stack.enter_context(ApacheKafka(resolve_jars(), folder / "kafka"))
        lines = {}
        for name in ("now", "before"):
            (folder / name).mkdir()
        if "now" in arguments.ways:
            lines[NOW] = Line(PROJECT, folder / "now", arguments.device)
        if arguments.before != "none" and "before" in arguments.ways:
            lines[THEN] = stack.enter_context(
                line_of(arguments.before, folder / "before", arguments.device)
            )
        for name in arguments.only:
            run = _CaseRun(name, CASES[name], arguments, (kafka.bootstrap, folder), lines)
            print_case(run.measure(keep), CASES[name])
    command = f"python -m benchmarks.throughput {shlex.join(sys.argv[1:])}"
    print(f"\n`{command.strip()}`, {(time.monotonic() - started) / 60:.0f} minutes.")


def _write_json(path: Path, results: Iterable[Found]) -> None:
    written = [
        {"case": one.case, "rates": one.rates, "cpu_s": one.cpu_s, "not_run": one.not_run}
        for one in results
    ]
    path.write_text(json.dumps(written, indent=2), encoding="utf-8")


class _CaseRun:
    """The rounds of one case."""

    def __init__(
        self,
        name: str,
        case: Case,
        arguments: argparse.Namespace,
        places: tuple[str, Path],
        lines: dict[str, Line],
    ) -> None:
        bootstrap, folder = places
        images = int((arguments.images or case.images) * (QUICK_SHARE if arguments.quick else 1))
        self._name, self._case, self._arguments, self._lines = name, case, arguments, lines
        self._folder = folder / name
        self._folder.mkdir()
        self._weights = self._folder / "weights.pt"
        self._topic = Topic(bootstrap, name, images)
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._cpu_s: dict[str, list[float]] = defaultdict(list)
        self._not_run: dict[str, str] = {}
        self._said: dict[str, int] = {}
        self._runs = 0

    def measure(self, keep: Callable[[Found], None]) -> Found:
        """Prepare, and measure each contender in turn, round by round.

        ``keep`` is given what was found so far after each contender.
        """
        case, quick = self._case, self._arguments.quick
        send_images(self._topic, pictures(self._name), case.images_per_message)
        calibrated = self._calibrate(60 if quick else case.calibration_images)
        contenders = self._line_contenders(calibrated) | self._peers()
        for number in range(self._arguments.rounds):
            for name, contender in contenders.items():
                if name in self._not_run or (name.startswith(THEN) and self._found().beaten(name)):
                    continue
                _say(f"{self._name}, round {number + 1}: {name}")
                try:
                    contender()
                except RunFailedError as error:
                    self._not_run[name] = str(error)
                    _say(f"{name}: {error}")
                else:
                    self._say_rates()
                keep(self._found())
        found = self._found()
        if self._name == "arrow" and found.cpu_s:
            self._print_row_cost(found)
        return found

    def _say_rates(self) -> None:
        """Say what has been measured since the last time."""
        for name, rates in self._rates.items():
            for rate in rates[self._said.get(name, 0) :]:
                _say(f"    {rate:,.1f} images/s: {name}")
            self._said[name] = len(rates)

    def _found(self) -> Found:
        cpu_s = {name: statistics.median(values) for name, values in self._cpu_s.items()}
        return Found(self._name, dict(self._rates), cpu_s, self._not_run)

    def _calibrate(self, images: int) -> dict[str, Path]:
        source = _SMALL if self._case.network == "free32" else _CALIBRATION_PHOTOS
        decided = self._folder / "decided.parquet"
        self._peer(
            "prepare",
            photos=str(_first(shared_data(source), 2 * images, self._folder)),
            decided=str(decided),
            keep=images,
        )
        calibrated = {}
        for name, line in self._lines.items():
            _say(f"{self._name}: {name} calibrates")
            known = {
                key: value
                for key, value in self._case.preprocessing.items()
                if line.knows("PreprocessingSettings", key)
            }
            calibrated[name] = line.calibrate(
                self._case.network,
                (self._weights, decided),
                self._name,
                preprocessing=known,
                method=self._case.method,
            )
        return calibrated

    def _line_contenders(self, calibrated: dict[str, Path]) -> dict[str, Callable[[], None]]:
        """Two workers and one, which by default has the machine, and in the past had to be told."""
        threads = "torch_threads" if self._case.of_forward else "decode_threads"
        ways = {
            NOW: {"1 worker": {"count": 1}, "2 workers": {"count": 2}},
            THEN: {f"1 worker, {threads}: 2": {"count": 1, threads: 2}, "2 workers": {"count": 2}},
        }
        found: dict[str, Callable[[], None]] = {}
        for kind, line in self._lines.items():
            for name, worker in ways[kind].items():
                contender = f"{kind}, {name}"
                run = partial(self._run_line, contender, line, calibrated[kind], worker)
                found[contender] = run
        return found

    def _run_line(
        self, contender: str, line: Line, calibrated: Path, worker: dict[str, Any]
    ) -> None:
        self._runs += 1
        measured = line.run(calibrated, self._topic, self._runs, self._placed(worker))
        self._rates[contender].append(measured.rate)
        self._cpu_s[contender].append(measured.cpu_s)

    def _placed(self, worker: dict[str, Any]) -> dict[str, Any]:
        gpus = 0 if self._arguments.device == "cpu" else 1 / worker["count"]
        return worker | {"num_gpus": gpus}

    def _peers(self) -> dict[str, Callable[[], None]]:
        if self._case.of_forward is None:
            return {}
        ways = _FORWARD_WAYS if self._arguments.device == "cpu" else ((1, 1),)
        found: dict[str, Callable[[], None]] = {}
        asked = self._arguments.ways
        for processes, threads in ways if "forward" in asked else ():
            found[f"forward, {processes} x {threads}"] = partial(self._forward, processes, threads)
        if "loop" in asked:
            found[LOOP] = partial(self._peer_rate, LOOP, "plain_loop")
        if "ray" in asked:
            found[RAY_DATA] = partial(self._peer_rate, RAY_DATA, "ray_data")
        return found

    def _forward(self, processes: int, threads: int) -> None:
        way = f"{processes} process{'es' if processes > 1 else ''} x {threads}"
        names = {precision: f"{FORWARD}, {precision}, {way}" for precision in PRECISIONS}
        left = [precision for precision in names if not self._found().beaten(names[precision])]
        if not left:
            return
        found = self._peer(
            "forward",
            processes=processes,
            threads=threads,
            batches=max(4, self._topic.images // 64),
            precisions=left,
            device=self._arguments.device,
        )
        for precision, rate in found.items():
            self._rates[names[precision]].append(rate)

    def _peer_rate(self, name: str, task: str) -> None:
        out = self._folder / f"{task}-{len(self._rates[name])}"
        out.mkdir()
        topic = self._topic
        where = {"bootstrap": topic.bootstrap, "topic": topic.name, "images": topic.images}
        found = self._peer(task, **where, out=str(out), device=self._arguments.device)
        if found["rows"] != topic.images:
            raise RunFailedError(f"{found['rows']} rows of {topic.images} images")
        self._rates[name].append(found["rate"])

    def _peer(self, task: str, **more: Any) -> dict[str, Any]:
        described = {"task": task, "network": self._case.network, "weights": str(self._weights)}
        python = self._arguments.peers_python if task == "ray_data" else sys.executable
        return run_peer(described | more, self._folder, python)

    def _print_row_cost(self, found: Found) -> None:
        """Print what is left of a row's CPU beside decode and forward."""
        images = str(_first(shared_data(_SMALL), 4_000, self._folder))
        beside = self._peer("cpu_beside_rows", photos=images, images=4_000)
        decode_s, forward_s = beside["decode"], beside["forward"]
        decoders = {NOW: min(decode_s, key=decode_s.__getitem__), THEN: "Pillow"}
        print(
            "\nCPU of a row: that of the workers in the middle of the runs of `arrow`, less "
            f"decoding, and normalising and forward ({1e6 * forward_s:.0f} µs an image of a batch "
            "of 32), both measured alone. Fetching from Kafka is in it."
        )
        for name, cpu_s in found.cpu_s.items():
            decoder = decoders[name.partition(",")[0]]
            decode_us = 1e6 * decode_s[decoder]
            left_us = 1e6 * (cpu_s - forward_s) - decode_us
            print(
                f"- {name}: {left_us:.0f} µs, asked {ROW_CPU_US:g}; "
                f"{decoder} decodes in {decode_us:.0f} µs"
            )


def pictures(case: str) -> list[bytes]:
    """The JPEGs of a case, to be sent again and again."""
    if case in {"small", "arrow"}:
        return _files(_SMALL)
    photos = _files(_PHOTOS)
    if case != "frames":
        return photos
    return [large_frame(photo, seed) for seed, photo in enumerate(photos[:_FRAMES])]


def large_frame(photo: bytes, seed: int) -> bytes:
    """Enlarge a photo to 4000 x 3000 pixels, with a sensor's noise, as a JPEG of quality 88."""
    enlarged = (
        Image.open(BytesIO(photo)).convert("RGB").resize((4_000, 3_000), Image.Resampling.BICUBIC)
    )
    noise = np.random.default_rng(seed).normal(0, 3, (3_000, 4_000, 1))
    pixels = np.clip(np.asarray(enlarged) + noise, 0, 255).astype(np.uint8)
    written = BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=88)
    return written.getvalue()


def print_case(found: Found, case: Case) -> None:
    """Print a table of medians with their ratios, and what is asked of the line."""
    before, forward = found.best(THEN), found.best(FORWARD)
    print(f"\n### {found.case}\n")
    print(
        "| contender | images/s | lowest, highest | of forward alone | of before | CPU ms a row |"
    )
    print("|---|---|---|---|---|---|")
    for name, rates in found.rates.items():
        median = statistics.median(rates)
        cpu_s = found.cpu_s.get(name)
        print(
            f"| {name} | {median:,.1f} | {min(rates):,.1f} to {max(rates):,.1f} "
            f"| {_ratio(median, forward)} | {_ratio(median, before)} "
            f"| {'' if cpu_s is None else f'{1_000 * cpu_s:.3f} '}|"
        )
    for name, why in found.not_run.items():
        print(f"| {name} | did not run: {why.splitlines()[0]} | | | | |")
    print()
    for line in verdicts(found, case):
        print(f"- {line}")


def verdicts(found: Found, case: Case) -> list[str]:
    """What is asked of the line in a case, and whether it is so; nothing where it did not run."""
    now = found.best(NOW)
    if now is None:
        return []
    asked = [
        ("of forward alone", found.best(FORWARD), case.of_forward),
        ("of the line of before", found.best(THEN), case.of_before),
    ]
    lines = [
        f"{now / other:.2f} {what}, asked {least:g}: {_kept(now / other >= least)}"
        for what, other, least in asked
        if other is not None and least is not None
    ]
    one, two = (found.median(f"{NOW}, {name}") for name in ("1 worker", "2 workers"))
    if one is not None and two is not None:
        lines.append(f"2 workers are {two / one:.2f} of 1 worker, asked 1: {_kept(two >= one)}")
    peers = [rate for name in (LOOP, RAY_DATA) if (rate := found.median(name)) is not None]
    if peers:
        lines.append(f"{now / max(peers):.2f} of the best peer, asked 1: {_kept(now > max(peers))}")
    return lines


def _kept(kept: bool) -> str:
    return "kept" if kept else "NOT kept"


def _ratio(rate: float, of: float | None) -> str:
    return "" if of is None else f"{rate / of:.2f}"


def _files(name: str) -> list[bytes]:
    files: list[bytes] = pq.read_table(shared_data(name), columns=["image"])["image"].to_pylist()
    return files


def _first(source: Path, images: int, folder: Path) -> Path:
    """A Parquet file of a source's first images."""
    path = folder / source.name
    pq.write_table(pq.read_table(source, columns=["image"]).slice(0, images), path)
    return path


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="all unless given")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--images", type=int, help="of each case, in place of its own number")
    parser.add_argument("--quick", action="store_true", help="arrow, with half of its images")
    parser.add_argument("--before", default=BEFORE, help="a revision, or none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers-python", default=sys.executable, help="has confluent-kafka")
    parser.add_argument("--json", type=Path, help="write the rates there as they come")
    arguments = parser.parse_args()
    arguments.only = arguments.only or (["arrow"] if arguments.quick else list(CASES))
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    return arguments


if __name__ == "__main__":
    main()
