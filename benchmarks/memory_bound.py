"""A worker's memory with a slow model and large images, against what the configuration allows.

    .venv/bin/python -m benchmarks.memory_bound
    .venv/bin/python -m benchmarks.memory_bound --in-hand-mib 64 --images 300

It fills a topic of Apache Kafka with JPEGs of noise (2,000 x 1,500 pixels, 3.5 MB each), runs a
monitor whose model takes several times as long for an image as reading and decoding it does, and
prints what its one worker holds beyond what the same worker held before the first of them. Exit
code 1 where that exceeds the bound.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.e2e.calibrated import faulty_net
from tests.e2e.monitor import new_monitor
from tests.e2e.processes import Program, nap_stream
from tests.e2e.slow_model import MemoryTrace, sections, watch
from tests.support.apache_kafka import ApacheKafka, resolve_jars
from tests.support.memory import MIB

SHOW_EVERY_S = 5.0


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="nsm", dir="/tmp") as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        with ApacheKafka(resolve_jars(), folder / "kafka") as kafka:
            trace = _measure(kafka.bootstrap, folder, options)
    _show(trace, options)
    sys.exit(trace.grown_bytes > trace.bound_bytes)


def _measure(bootstrap: str, folder: Path, options: argparse.Namespace) -> MemoryTrace:
    (folder / "net").mkdir()
    net = faulty_net(folder / "net")
    monitor = new_monitor(
        bootstrap,
        folder / "monitor",
        net.calibration,
        model=net.model,
        **sections(
            in_flight_bytes=options.in_hand_mib * MIB,
            fetch_bytes=options.fetch_mib * MIB,
            max_poll_interval_s=options.max_poll_interval_s,
        ),
    )
    command = nap_stream("run", "--config", monitor.config, "--until-idle", "15")
    environ = {"RAY_TMPDIR": str(folder)}
    with Program(command, folder / "run", environ) as run:
        trace = watch(
            run,
            monitor,
            net.faults,
            images=options.images,
            seconds_per_image=options.seconds_per_image,
        )
        if run.wait() != 0:
            sys.exit(run.tail)
    return trace


def _show(trace: MemoryTrace, options: argparse.Namespace) -> None:
    print("    s   rows  in flight  RSS beyond the start, MiB")
    shown_s = float("-inf")
    peak = max(trace.samples, key=lambda sample: sample.rss_bytes)
    for sample in trace.samples:
        if sample is peak or sample.at_s - shown_s >= SHOW_EVERY_S:
            shown_s = sample.at_s
            grown = (sample.rss_bytes - trace.base_bytes) / MIB
            print(f"{sample.at_s:5.0f}  {sample.rows:5}  {sample.in_flight:7}  {grown:8.1f}")
    topic = options.images * trace.message_bytes
    print(f"at the start {trace.base_bytes / MIB:.0f} MiB, the topic {topic / MIB:.0f} MiB")
    print(
        f"beyond the start at most {trace.grown_bytes / MIB:.0f} MiB, "
        f"the bound {trace.bound_bytes / MIB:.0f} MiB, "
        f"ratio {trace.grown_bytes / trace.bound_bytes:.2f}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--seconds-per-image", type=float, default=0.5)
    parser.add_argument("--in-hand-mib", type=int, default=40)
    parser.add_argument("--fetch-mib", type=int, default=50)
    parser.add_argument("--max-poll-interval-s", type=float, default=4.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
