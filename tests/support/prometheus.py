"""Prometheus, its promtool, and Alertmanager, as they are installed."""

import json
import math
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
import yaml

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until

REQUIRE = "NAP_STREAM_REQUIRE_PROMETHEUS"
RULES = Path(__file__).parents[2] / "deploy/prometheus-rules.yaml"
PACKAGES = "apt-get install prometheus prometheus-alertmanager"


ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
"""What it is called, by Debian and by its makers."""


def installed(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def program(*names: str) -> str:
    """The first of these programs that is installed; skips with the reason where none is."""
    if (path := installed(*names)) is not None:
        return path
    reason = f"{names[0]} is not on the path ({PACKAGES})"
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {reason}")
    pytest.skip(reason)


def promtool(*arguments: str | Path) -> str:
    """What promtool says; fails with it where it finds a fault."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def scrape_config(instance: str, alertmanager: str) -> dict[str, Any]:
    """Of a Prometheus that asks one monitor each second, and has the rules of deploy/."""
    address = alertmanager.removeprefix("http://")
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]},
        "scrape_configs": [
            {"job_name": "nap-stream", "static_configs": [{"targets": [instance]}]},
        ],
    }


def values(prometheus: str, expr: str) -> list[float]:
    """What a query gives now; not what is no number."""
    answer = ask(f"{prometheus}/api/v1/query", query=expr)
    found = [float(sample["value"][1]) for sample in answer["data"]["result"]]
    return [value for value in found if not math.isnan(value)]


def written(file: Path, tree: object) -> Path:
    """A file of YAML."""
    file.write_text(yaml.safe_dump(tree))
    return file


@contextmanager
def running_prometheus(folder: Path, config: Path) -> Iterator[str]:
    """The address of a Prometheus that reads ``config``, for as long as the block runs."""
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
    ]
    with _serving(command, folder / "prometheus.log") as url:
        yield url


@contextmanager
def running_alertmanager(folder: Path, config: Path) -> Iterator[str]:
    """The address of an Alertmanager that reads ``config``, for as long as the block runs."""
    command = [
        program(*ALERTMANAGER),
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}",
        "--cluster.listen-address=",
    ]
    with _serving(command, folder / "alertmanager.log") as url:
        yield url


def ask(url: str, *, body: object = None, **parameters: str) -> Any:
    """The JSON that a GET gives, or a POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    query = f"?{urlencode(parameters)}" if parameters else ""
    request = urllib.request.Request(f"{url}{query}", data, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


@contextmanager
def _serving(command: list[str], log: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=output, stderr=output
        )
    try:
        url = f"http://{address}"
        wait_until(lambda: _is_ready(process, url, log), lambda: f"{command[0]}: {log.read_text()}")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def _is_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=PATIENCE_S):
            return True
    except (URLError, ConnectionError):
        return False
