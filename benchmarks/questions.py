"""How long each question of docs/audit.md takes on a large log, asked as users ask it.

    python -m benchmarks.questions [--rows 10000000] [--rounds 3] [--log FOLDER]
        [--only NUMBER...]

The log is that of `benchmarks.query`, with 1,000 alerts that were sent, the half of them
acknowledged, and 30 runs with changed settings, and without kept images. Each command of the page
is a process of its own; names in it are exchanged for those of that log. What asks a model has
nothing to ask here, and is left out; question 20 is asked without Kafka, 13 finds nothing to erase,
and 14 has a copy of hard links each time. Prints rows of a table: medians of the rounds, in seconds
of the clock and of all cores' time.
"""

import argparse
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
from pathlib import Path
from typing import Any

from benchmarks.query import FIRST_MS, make_log
from nap_stream.scored_log.events import Event, append_event, read_events
from nap_stream.scored_log.query import Query, scan
from nap_stream.scored_log.stores.local import LocalStore

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
        capture_output=True,
        text=True,
        check=False,
    )
    # Nothing is kept here that could be erased.
    if ended.returncode not in {0, int(arguments[0] == "erase")}:
        raise SystemExit(f"{shlex.join(arguments)}: {ended.stderr}")
    return ended.stdout


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
    arguments = parser.parse_args()
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
