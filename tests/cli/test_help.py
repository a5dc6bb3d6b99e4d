"""Help must be quick: it loads nothing that takes long to import. Who asks the log, no torch."""

import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from nap_stream.calibration.artifact import write_calibration
from nap_stream.cli.app import COMMANDS
from tests.scored_log.builders import chain, origin, scored
from tests.support.small_calibration import calibration_of

HEAVY = ("torch", "ray", "pyarrow", "scipy", "kafka")
# The list of commands is what a shell asks for again and again.
LISTED = (*HEAVY, "nap_stream.settings", "numpy", "pydantic", "rich", "structlog", "yaml")
# All in one process, which starts once: what any help loads is told with the command that did.
PROGRAM = f"""
import sys
from nap_stream.cli import main

for command in {[[], *([name] for name in COMMANDS)]}:
    sys.argv = ["nap-stream", *command, "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
    loaded = [name for name in ({HEAVY} if command else {LISTED}) if name in sys.modules]
    assert not loaded, (command, loaded)
"""


def test_help_loads_nothing_heavy() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Usage:") == 1 + len(COMMANDS)
    assert all(f"  {name} " in ended.stdout for name in COMMANDS)


ASKED_WITHOUT_DUCKDB = (
    "show cars/0/0 --format json",
    "show cars/0/0 --calibration {folder}/calibration --format json",
    "verify --deep",
    "history",
    "compact --dry-run",
    "prune --before 2026-01-02T00:00Z --by A --reason B --dry-run",
)
ASKED = (
    *ASKED_WITHOUT_DUCKDB,
    "query",
    "query --by day,class",
    "sql 'select count(*) from records'",
    "report --out {folder}/report.html",
    "report --config {folder}/monitor.yaml --out {folder}/judged.html",
    "query --config {folder}/monitor.yaml",
)


def test_a_log_is_asked_without_torch(tmp_path: Path) -> None:
    chain(tmp_path / "log", [(2, [scored(origin(0)), scored(origin(1))])])
    scores = [float(number) for number in range(1_000)]
    write_calibration(calibration_of(scores, scores, alpha=0.05), tmp_path / "calibration")
    config = {
        "kafka": {"bootstrap_servers": ["127.0.0.1:1"], "topic": "cars"},
        "model": {"factory": "package.module:name", "preprocessing": {}},
        "calibration": "calibration",
        "log": {"root": "log"},
    }
    (tmp_path / "monitor.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    asked = [shlex.split(each.format(folder=tmp_path)) for each in ASKED]
    program = f"""
import sys
from nap_stream.cli import main

for place, words in enumerate({asked}):
    named = () if "--config" in words else ("--log", {str(tmp_path / "log")!r})
    sys.argv = ["nap-stream", *words, *named]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)
    assert not {{"torch", "ray", "kafka"}} & set(sys.modules), words
    if place < {len(ASKED_WITHOUT_DUCKDB)}:
        assert not {{"duckdb", "fsspec"}} & set(sys.modules), words
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
