"""One calibration and one Ray cluster for all end-to-end tests."""

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nap_stream.calibration.artifact import write_calibration
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import SystemClock
from nap_stream.core.judging import Rule
from nap_stream.dev.broker import free_port
from nap_stream.settings import LimitSettings, ModelSettings, ScoringSettings
from tests.e2e.monitor import model_section
from tests.e2e.processes import Program
from tests.support.images import write_images
from tests.support.waiting import wait_until

START_S = 90.0
RAY_ENVIRON = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # events of two workers differ by a word, and each one counts
}


@contextmanager
def _ray_folder() -> Iterator[Path]:
    """A folder with a path that is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nsray", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class RayHead:
    """A running head node, and the environment of programs that speak with it."""

    address: str
    dashboard: str
    environ: dict[str, str]


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny net's calibration on 400 held-out smooth images."""
    folder = tmp_path_factory.mktemp("calibration")
    torch.set_num_threads(1)
    request = CalibrationRequest(
        model=ModelSettings.model_validate(model_section()),
        scoring=ScoringSettings(method="nap-energy"),
        images=write_images(folder / "held-out", 400, first_seed=100_000),
        fit_images=None,
        rule=Rule(0.05),
        weight=0.4,
        batch_size=32,
        limits=LimitSettings(),
    )
    found = calibrate(request, device=torch.device("cpu"), clock=SystemClock())
    write_calibration(found, folder / "artifact", force=False)
    return folder / "artifact"


@pytest.fixture
def local_ray() -> Iterator[dict[str, str]]:
    """The environment of a program that starts Ray by itself."""
    with _ray_folder() as folder:
        yield {**RAY_ENVIRON, "RAY_TMPDIR": str(folder)}


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A real ``ray start --head`` with four CPUs and no GPU."""
    port, dashboard_port = free_port(), free_port()
    address, dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
    with _ray_folder() as folder:
        command = [
            *("ray", "start", "--head", "--block", "--num-cpus=4", "--num-gpus=0"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"),
            *("--include-dashboard=true", f"--dashboard-port={dashboard_port}"),
            *(f"--ray-client-server-port={free_port()}", "--object-store-memory=200000000"),
            *(f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"),
            *(f"--dashboard-agent-grpc-port={free_port()}",),
            *(f"--metrics-export-port={free_port()}",),
        ]
        environ = {
            **RAY_ENVIRON,
            "RAY_ADDRESS": address,
            "RAY_API_SERVER_ADDRESS": dashboard,
        }
        with Program(command, tmp_path_factory.mktemp("ray-head"), RAY_ENVIRON) as head:
            wait_until(lambda: _answers(head, dashboard), START_S, f"Ray's dashboard\n{head.tail}")
            yield RayHead(address, dashboard, environ)


def _answers(head: Program, dashboard: str) -> bool:
    assert head.running, f"ray start ended\n{head.tail}"
    try:
        with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
