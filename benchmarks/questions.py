"""How long each question of docs/audit.md takes on a large log, asked as users ask it.

    python -m benchmarks.questions [--rows 10000000] [--rounds 3] [--log FOLDER]
        [--only NUMBER...]
    python -m benchmarks.questions --monitored [--messages 20000] [--rounds 3]

The log is that of `benchmarks.query`, with 1,000 alerts that were sent, the half of them
acknowledged, and 30 runs with changed settings, and without kept images. Each command of the page
is a process of its own; names in it are exchanged for those of that log. What asks a model has
nothing to ask here, and is left out; question 20 is asked without Kafka, 13 finds nothing to erase,
and 14 has a copy of hard links each time. Prints rows of a table: medians of the rounds, in seconds
of the clock and of all cores' time.

``--monitored`` asks what that leaves out: 3 and 16 on the small log, model and kept images of the
tests (`tests.cli.test_show`), where the start of torch is most of it; 20 of so many messages, JPEGs
of 224 by 224, with the broker of the demo, whose own time does not count.
"""

import argparse
import hashlib
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from kafka import KafkaProducer
from PIL import Image

from benchmarks.query import FIRST_MS, day_rows, make_log
from nap_stream.clock import ManualClock
from nap_stream.demo.processes import embedded_broker
from nap_stream.records import TopicPartition
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.events import Event, append_event, read_events
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore
from tests.cli.test_show import address, monitored
from tests.support.image_bytes import encoded
from tests.support.topics import new_settings

PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
LEFT_OUT = {"3", "16"}
NAMES = {
    **dict.fromkeys(("images", "bottles"), "frames"),
    "ROW": "frames/3/50",
    "person-17": "camera-17",
    "d4d4": "a2",
}


def commands(text: str) -> list[tuple[str, str, str]]:
    """Number, question and command of each row of the page."""
    table = text[text.index("<!-- questions -->") : text.index("<!-- end of questions -->")]
    return re.findall(r"^\| (\d+) \| ([^|]*) \| `([^`]*)` \|", table, re.MULTILINE)


def asked(command: str, log: Path, sha256: str) -> list[str]:
    """The arguments of a command, for this log."""
    names = NAMES | {"scored-log": str(log), "SHA256": sha256}
    words = [names.get(word, word) for word in shlex.split(command)[1:]]
    if "--against-broker" in words:
        words = ["verify", "--log", str(log), "--deep"]
    return [word.replace("'bottles'", "'frames'") for word in words]


def write_events(log: Path) -> None:
    """What was started, told and answered in a month; once."""
    store = LocalStore(log)
    if any(read_events(store, defects=[])):
        return
    for number in range(1_500):
        of: dict[str, Any] = {
            "topic": "frames",
            "monitor": "frames",
            "time_ms": FIRST_MS + number * 1_728_000,
        }
        if number % 50 == 0:
            drift = {"drift": {"window_records": 500 + number}}
            event = Event(kind="run-started", by="coordinator", data={"settings": drift}, **of)
        elif number % 3 == 2:
            data = {"alert": f"drift-{number - 1}", "comment": "seen"}
            event = Event(kind="acknowledged", by="A. Auditor", data=data, **of)
        else:
            told = {"state": "firing", "severity": "warning", "summary": "31 of 90 images"}
            sent = {"id": f"drift-{number}", "type": "io.nap-stream.drift.firing", "data": told}
            event = Event(kind="alert", by="coordinator", data={"event": sent}, **of)
        append_event(store, event)


def run(arguments: list[str], folder: Path) -> str:
    """What ``nap-stream`` prints."""
    ended = subprocess.run(  # noqa: S603  our own arguments
        [sys.executable, "-c", "from nap_stream.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    # Nothing is kept here that could be erased.
    if ended.returncode not in {0, int(arguments[0] == "erase")}:
        raise SystemExit(f"{shlex.join(arguments)}: {ended.stderr}")
    return ended.stdout


def ask_model(folder: Path, rounds: int) -> None:
    """Questions 3 and 16: of a row that a small network has judged, whose image was kept."""
    made = monitored(folder)
    row = address(made.flagged)
    example = {"partition": 0, "offset": made.flagged["offset"], "index": made.flagged["index"]}
    told = {"examples": [example], "topic": "images", "state": "firing", "severity": "warning"}
    sent = {"id": "drift-1", "type": "io.nap-stream.drift.firing", "data": told}
    event = Event(
        kind="alert", by="coordinator", topic="images", time_ms=FIRST_MS, data={"event": sent}
    )
    append_event(LocalStore(folder / "log"), event)
    own = ["--config", "monitor.yaml"]
    print_medians("3", ["show", row, *own, "--rescore", "--format", "json"], folder, rounds)
    print_medians("16", ["show", "drift-1", *own, "--out", "example.png"], folder, rounds)


def ask_broker(folder: Path, messages: int, rounds: int) -> None:
    """Question 20: a partition of images, in the log and in a topic."""
    own = np.random.default_rng(1)
    images = [
        encoded(Image.fromarray(own.integers(0, 255, (224, 224, 3), np.uint8)), "JPEG")
        for _ in range(100)
    ]
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    with embedded_broker() as address:
        kafka = new_settings(address)
        partition = TopicPartition(kafka.topic, 0)
        with closing(KafkaProducer(bootstrap_servers=[address])) as producer:
            for number in range(messages):
                producer.send(kafka.topic, value=images[number % 100])
            producer.flush()
        log = ScoredLog(
            LocalStore(folder / "log"),
            WriterIdentity("benchmark", "a1" * 32, "b1" * 32),
            ManualClock(FIRST_MS),
        )
        rows = day_rows(0, 0, messages)
        place = rows.column_names.index("sha256")
        sha256 = pa.array([digests[number % 100] for number in range(messages)])
        log.publish(
            partition,
            log.begin(partition, 0),
            messages,
            rows.set_column(place, rows.schema.field(place), sha256),
        )
        config = {
            "kafka": {"bootstrap_servers": [address], "topic": kafka.topic},
            "model": {"factory": "package.module:name", "preprocessing": {}},
            "calibration": "calibration",
            "log": {"root": "log"},
        }
        (folder / "calibration").mkdir()
        (folder / "monitor.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        words = "verify --config monitor.yaml --deep --against-broker --contents"
        print_medians(f"20, {messages:,} messages", words.split(), folder, rounds)


def print_medians(name: str, arguments: list[str], folder: Path, rounds: int) -> None:
    took = [timed(arguments, folder) for _ in range(rounds)]
    clock, cores = (statistics.median(column) for column in zip(*took, strict=True))
    print(f"| {name} | {clock:.1f} | {cores:.1f} |", flush=True)


def timed(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of the clock and of cores that a command took."""
    if arguments[0] == "prune":
        # It removes what the next question asks for.
        log = Path(arguments[arguments.index("--log") + 1])
        shutil.rmtree(folder / "pruned", ignore_errors=True)
        shutil.copytree(log, folder / "pruned", copy_function=os.link)
        arguments = [str(folder / "pruned") if each == str(log) else each for each in arguments]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(arguments, folder)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--only", nargs="*", metavar="NUMBER")
    parser.add_argument("--monitored", action="store_true")
    parser.add_argument("--messages", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.monitored:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            ask_model(Path(one), arguments.rounds)
            ask_broker(Path(other), arguments.messages, arguments.rounds)
        return
    # Beside the log, so that links can be made.
    with tempfile.TemporaryDirectory(dir=arguments.log and arguments.log.parent) as name:
        folder = Path(name)
        log = (arguments.log or folder / "log").resolve()
        make_log(log, arguments.rows)
        write_events(log)
        (folder / "evidence" / "2026-05-01").mkdir(parents=True)
        place = Query(partitions=(3,), offsets=(50, 50))
        sha256 = next(scan(LocalStore(log), place)).column("sha256")[0].as_py()
        public = run(["checkpoint-key", "--out", "signing.key", "--name", "benchmark"], folder)
        (folder / "keys.txt").write_text(public, encoding="utf-8")
        export = ["--export", "may-31", "--sign-with", "signing.key"]
        run(["query", "--log", str(log), "--day", "2026-05-20", "--ood", *export], folder)
        took: dict[str, tuple[float, float]] = {}
        for number, question, command in commands(PAGE.read_text(encoding="utf-8")):
            if number in LEFT_OUT or (arguments.only and number not in arguments.only):
                continue
            if command not in took:
                words = asked(command, log, sha256)
                rounds = [timed(words, folder) for _ in range(arguments.rounds)]
                clock, cores = (statistics.median(column) for column in zip(*rounds, strict=True))
                took[command] = clock, cores
            clock, cores = took[command]
            print(f"| {number} | {question} | {clock:.1f} | {cores:.1f} |", flush=True)


if __name__ == "__main__":
    main()
