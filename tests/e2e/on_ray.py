"""Runs of a monitor on a Ray cluster that is there already."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.monitor import PROJECT, Monitor, metrics_url, wait_for_assignments
from tests.e2e.processes import Program, nap_stream

JOB_SCRIPT = PROJECT / "deploy" / "ray-job.sh"


@dataclass(frozen=True)
class RayHead:
    """A running head node, and the environment of programs that speak with it."""

    address: str
    dashboard: str
    environ: dict[str, str]


def start_run(monitor: Monitor, head: RayHead, folder: Path, *options: str) -> Program:
    """Start ``nap-stream run``, with its output in ``folder``."""
    command = nap_stream("run", "--config", monitor.config, "--address", head.address, *options)
    return Program(command, folder, head.environ)


@contextmanager
def running(monitor: Monitor, head: RayHead, folder: Path, *options: str) -> Iterator[Program]:
    """A run that has started and whose every worker has partitions."""
    with start_run(monitor, head, folder, *options) as run:
        metrics_url(run)
        wait_for_assignments(run)
        yield run


def submit_job(monitor: Monitor, head: RayHead, folder: Path) -> str:
    """Submit a run with deploy/ray-job.sh, and give the job's name."""
    job = f"nap-stream-{uuid.uuid4().hex[:8]}"
    environ = {**head.environ, "NAP_STREAM_JOB_ID": job}
    with Program([str(JOB_SCRIPT), str(monitor.config)], folder, environ) as submit:
        assert submit.wait(60) == 0, submit.tail
    return job


def ray_job(action: str, job: str, head: RayHead, folder: Path) -> str:
    """What ``ray job ACTION`` says of a job."""
    with Program(["ray", "job", action, job], folder, head.environ) as program:
        assert program.wait(90) == 0, program.tail
        return program.stdout + program.stderr
