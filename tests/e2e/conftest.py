"""One calibration and one Ray cluster for all end-to-end tests."""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.e2e.calibrated import Faulty, calibrated, faulty_net
from tests.e2e.monitor import model_section
from tests.e2e.on_ray import RayHead, ray_up
from tests.e2e.processes import Program
from tests.support.faulty_net import clear
from tests.support.leftovers import short_folder
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

LOCAL = "127.0.0.1"
STARTED = "Ray runtime started"
ADDRESSES = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny net's calibration on 400 held-out smooth images."""
    return calibrated(tmp_path_factory.mktemp("calibration"), model_section())


@pytest.fixture(scope="session")
def _faulty_net(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    return faulty_net(tmp_path_factory.mktemp("faulty-calibration"))


@pytest.fixture
def faulty(_faulty_net: Faulty) -> Iterator[Faulty]:
    """A net that hangs or dawdles when a test says so; without faults at start and end."""
    clear(_faulty_net.faults)
    yield _faulty_net
    clear(_faulty_net.faults)


@pytest.fixture
def local_ray() -> Iterator[dict[str, str]]:
    """The environment of a program that starts Ray by itself."""
    with short_folder() as folder:
        yield {"RAY_TMPDIR": str(folder)}


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A real ``ray start --head`` with four CPUs and no GPU."""
    with started_head(tmp_path_factory.mktemp("ray-head"), cpus=4) as head:
        yield head


@pytest.fixture
def bare_ray_head(tmp_path: Path) -> Iterator[RayHead]:
    """A head node without CPUs, for a test that adds and kills nodes."""
    with started_head(tmp_path / "ray-head", cpus=0) as head:
        yield head


@contextmanager
def ray_node(
    head: RayHead,
    cpus: int,
    folder: Path,
    *options: str,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    host: str = LOCAL,
) -> Iterator[Program]:
    """A real ``ray start`` of another node on this machine, which has joined the cluster."""
    command = [
        *prefix,
        *("ray", "start", "--block", f"--address={head.address}", f"--num-cpus={cpus}"),
        *("--num-gpus=0", f"--node-ip-address={host}", "--object-store-memory=100000000"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *_agent_ports(),
        *options,
    ]
    with ray_up(command, folder, lambda node: STARTED in node.stdout, environ) as node:
        assert node.running, node.tail
        yield node


@contextmanager
def started_head(
    output: Path, cpus: int, environ: Mapping[str, str] | None = None, host: str = LOCAL
) -> Iterator[RayHead]:
    """A real ``ray start --head``, with ``environ`` in its environment and in the programs'."""
    with short_folder() as folder:
        head, command = head_command(folder, cpus, environ, host)
        with head_program(head, command, output):
            yield head


def head_command(
    folder: Path, cpus: int, environ: Mapping[str, str] | None = None, host: str = LOCAL
) -> tuple[RayHead, list[str]]:
    """The command that starts a head on ports of its own, with its files in a folder."""
    port, dashboard_port = free_port(), free_port()
    command = [
        *("ray", "start", "--head", "--block", f"--num-cpus={cpus}", "--num-gpus=0"),
        *(f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={folder}"),
        *("--include-dashboard=true", f"--dashboard-port={dashboard_port}"),
        *(f"--ray-client-server-port={free_port()}", "--object-store-memory=200000000"),
        *_agent_ports(),
    ]
    address, dashboard = f"{host}:{port}", f"http://127.0.0.1:{dashboard_port}"
    known = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": dashboard, **(environ or {})}
    return RayHead(address, dashboard, known), command


@contextmanager
def head_program(head: RayHead, command: list[str], output: Path) -> Iterator[Program]:
    """The head that a command of `head_command` starts, once it answers."""
    # Where it is told an address, it would look for a cluster there.
    environ = {name: value for name, value in head.environ.items() if name not in ADDRESSES}

    def is_up(program: Program) -> bool:
        # The dashboard may answer before the node has joined, or where it never will.
        return STARTED in program.stdout and _answers(head.dashboard)

    with ray_up(command, output, is_up, environ) as program:
        assert program.running, program.tail
        yield program


def _agent_ports() -> list[str]:
    return [
        *(f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"),
        *(f"--dashboard-agent-grpc-port={free_port()}",),
        *(f"--metrics-export-port={free_port()}",),
    ]


def _answers(dashboard: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=PATIENCE_S) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.UNAUTHORIZED  # it is there, and wants a token
    except OSError:
        return False
