"""Runs of a monitor on a Ray cluster that is there already."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.monitor import PROJECT, Monitor, metrics_url, wait_for_assignments
from tests.e2e.processes import Program, nap_stream
from tests.support.ray_start import ATTEMPTS, was_too_slow
from tests.support.waiting import wait_until

JOB_SCRIPT = PROJECT / "deploy" / "ray-job.sh"


@dataclass(frozen=True)
class RayHead:
    """A running head node, and the environment of programs that speak with it."""

    address: str
    dashboard: str
    environ: dict[str, str]


@contextmanager
def ray_up(
    command: list[str],
    folder: Path,
    is_up: Callable[[Program], bool],
    environ: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """A program that starts Ray, once it is up; begun anew where Ray was too slow for itself.

    One that ends for another reason is for the caller to judge.
    """
    for attempt in range(1, ATTEMPTS + 1):
        with Program(command, folder / f"attempt-{attempt}", environ) as program:
            _wait_for_ray(program, is_up)
            if program.running or attempt == ATTEMPTS or not was_too_slow(program.stderr):
                yield program
                return


def _wait_for_ray(program: Program, is_up: Callable[[Program], bool]) -> None:
    def settled() -> bool:
        return not program.running or is_up(program)

    wait_until(settled, lambda: f"Ray, by {program}")


@contextmanager
def running_alone(
    monitor: Monitor,
    environ: Mapping[str, str],
    folder: Path,
    *options: str,
    prefix: Sequence[str] = (),
) -> Iterator[Program]:
    """``nap-stream run`` that has started Ray on this machine by itself."""
    command = [*prefix, *nap_stream("run", "--config", monitor.config, *options)]
    with ray_up(command, folder, lambda run: "monitor_started" in run.stderr, environ) as run:
        yield run


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


def submit_job(monitor: Monitor, head: RayHead, folder: Path, *options: str) -> str:
    """Submit a run with deploy/ray-job.sh, and give the job's name when the monitor has started."""
    job = f"nap-stream-{uuid.uuid4().hex[:8]}"
    with job_script(monitor.config, head, folder, *options, job=job) as submit:
        assert submit.wait() == 0, submit.tail
        assert "the monitor has started" in submit.stderr
    return job


def job_script(
    config: Path, head: RayHead, folder: Path, *options: str, job: str | None = None
) -> Program:
    """deploy/ray-job.sh, called in the folder of a configuration with its bare name."""
    environ = {**head.environ, **({} if job is None else {"NAP_STREAM_JOB_ID": job})}
    command = ["env", "-C", str(config.parent), str(JOB_SCRIPT), *options, config.name]
    return Program(command, folder, environ)


def ray_job(action: str, job: str, head: RayHead, folder: Path) -> str:
    """What ``ray job ACTION`` says of a job."""
    with Program(["ray", "job", action, job], folder, head.environ) as program:
        assert program.wait() == 0, program.tail
        return program.stdout + program.stderr
