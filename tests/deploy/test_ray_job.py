"""How deploy/ray_job.py bears a head that is away: the client of Ray's jobs is told what to do.

tests/e2e/test_ray_job.py has the script on a real cluster.
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.job_submission
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus
from requests.exceptions import ConnectionError as RequestsConnectionError

from deploy import ray_job

CONFIG = "/etc/monitor.yaml"
COMMAND = f"python -m nap_stream run --config {CONFIG}"
HANGS = "hangs"
RUNNING, STOPPED, ENDED = JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.SUCCEEDED
AWAY = RequestsConnectionError("refused")


def job(name: str, status: JobStatus, command: str = COMMAND, start: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        submission_id=name, status=status, entrypoint=command, start_time=start, message=""
    )


@dataclass
class Cluster:
    """Ray's client. What is told is answered in turn, and its last answer again and again."""

    infos: list[Any]
    stops: list[Any] = field(default_factory=lambda: [True])
    jobs: list[SimpleNamespace] = field(default_factory=list)
    signals: bool = False
    submitted: list[str] = field(default_factory=list)
    stopped: int = 0
    tails: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def submit_job(self, *, submission_id: str, **_request: object) -> str:
        self.submitted.append(submission_id)
        if self.signals:
            os.kill(os.getpid(), signal.SIGTERM)
        if submission_id in {each.submission_id for each in self.jobs}:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.jobs.append(job(submission_id, RUNNING))
        return submission_id

    def get_job_info(self, name: str) -> SimpleNamespace:
        return job(name, self._next(self.infos))

    def stop_job(self, _name: str) -> bool:
        self.stopped += 1
        return bool(self._next(self.stops))

    async def tail_job_logs(self, _name: str) -> AsyncIterator[str]:
        self.tails += 1
        yield "a line\n"
        await asyncio.Event().wait()

    def _next(self, answers: list[Any]) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == HANGS:
            self.over.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray_job, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(ray_job, "ANSWER_S", 0.05)
    monkeypatch.delenv("NAP_STREAM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs the script with --follow on a cluster."""
    used: list[Cluster] = []

    def run(cluster: Cluster, folder: str | None = None) -> None:
        used.append(cluster)
        monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda _address: cluster)
        ray_job._run(CONFIG, folder, [], on=None, follow=True)

    yield run
    for cluster in used:
        cluster.over.set()


def test_a_tail_that_never_ends_holds_nothing_up(
    follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    follow(Cluster([RUNNING, RUNNING, ENDED]))
    said = capsys.readouterr()
    assert said.out == "a line\n"
    assert "has ended: succeeded" in said.err


def test_a_head_that_accepts_and_never_answers_is_given_up(
    follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job, "SILENCE_S", 0.3)
    cluster = Cluster([RUNNING, HANGS])
    with pytest.raises(ray_job._FailedError, match="no Ray cluster answers"):
        follow(cluster)
    assert cluster.tails > 1, "the log is asked for anew"


def test_a_head_that_comes_back_is_asked_whether_the_job_lives(
    follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster([RUNNING, AWAY, HANGS, RUNNING, RUNNING, ENDED])
    follow(cluster)
    assert cluster.submitted == [cluster.submitted[0]] * 2
    assert capsys.readouterr().out == "a line\n", "what was shown is not shown again"


def test_a_signal_while_the_job_is_submitted_stops_it_once_the_head_takes_it(
    follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(
        [*[RUNNING] * 7, STOPPED],
        stops=[AWAY, AuthenticationError("no token"), HANGS, RuntimeError("500"), False, True],
        signals=True,
    )
    follow(cluster)
    assert cluster.stopped == 6, "and not again"
    said = capsys.readouterr().err
    assert said.count("stopping") == said.count("is asked again: refused") == 1
    assert "has ended: stopped" in said


def left() -> Cluster:
    """A cluster with the job of a supervisor that was killed, and others."""
    jobs = [
        job("of-yesterday", ENDED, start=1),
        job("another", RUNNING, f"{COMMAND} --until-idle 60", start=2),
        job("refused-soon", JobStatus.PENDING, start=4),
        job("left", RUNNING, start=3),
    ]
    return Cluster([RUNNING, ENDED], jobs=jobs)


def test_a_supervisor_that_was_killed_takes_its_job_back(
    follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = left()
    follow(cluster)
    assert cluster.submitted == ["left"]
    assert "took back left; to stop it" in capsys.readouterr().err


def test_an_uploaded_file_may_be_another_than_that_of_a_job_with_the_same_command(
    follow: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = left()
    follow(cluster, folder="/home/somebody")
    assert "left" not in cluster.submitted
    assert "submitted as nap-stream-" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_configuration_in_a_store_is_handed_on_as_it_stands(scheme: str) -> None:
    address = f"{scheme}://bucket/cameras/monitor.yaml"
    assert ray_job._configuration(address, upload=False) == (address, None)
    with pytest.raises(ray_job._FailedError, match="no such file"):
        ray_job._configuration(address, upload=True)
    for secret in (f"{address}?sig=hush", "s3://key:hush@bucket/x", "https://a.net/c?sig=hush"):
        with pytest.raises(ray_job._FailedError, match=r"an address with \? or @") as caught:
            ray_job._configuration(secret, upload=False)
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize("problem", [AWAY, RuntimeError("no http://ann:hush@head:8265 here")])
def test_a_password_in_the_address_of_the_cluster_is_not_shown(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_address: str) -> None:
        raise problem

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://ann:hush@head:8265")
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", refuse)
    with pytest.raises(ray_job._FailedError, match="http://…@head:8265") as caught:
        ray_job._run(CONFIG, None, [], on=None, follow=False)
    assert "hush" not in str(caught.value)
