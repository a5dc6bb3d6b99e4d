"""Submits `nap-stream run` to a Ray cluster as a job, and waits until the monitor has started.

deploy/ray-job.sh calls it. It needs no package but Ray, of the cluster's version.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

USAGE = """\
  deploy/ray-job.sh monitor.yaml                  end when the monitor has started
  deploy/ray-job.sh --follow monitor.yaml         show its log until it ends; SIGTERM stops it
  deploy/ray-job.sh --upload monitor.yaml         upload the folder of the file first
  deploy/ray-job.sh monitor.yaml --until-idle 60  further options go to `nap-stream run`

monitor.yaml is looked for here, and handed on as an absolute path, which all nodes must see alike.
An absolute path that is not here is taken as the nodes see it, and the address of an object
(s3://bucket/key, gs://bucket/key, az://container/key) is fetched by the job. With --upload the
folder goes with the job, 500 MB at most; log.root must then be absolute or in an object store,
because Ray deletes the job's copy of the folder.

  RAY_API_SERVER_ADDRESS   the cluster's dashboard, http://127.0.0.1:8265 by default
  NAP_STREAM_JOB_ID        the job's submission id, nap-stream-<seconds since the epoch> by default
  NAP_STREAM_STOP_WAIT_S   how long `ray job stop` waits; more than driver.shutdown_deadline_s
  RAY_AUTH_MODE=token      for a cluster that wants a token: that in RAY_AUTH_TOKEN, or in the file
                           that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token

nap-stream must be installed in the cluster's Python environment. Secrets do not belong into a job's
environment, which the dashboard shows: mount a file and name it in kafka.sasl_password_file.

Stop it with `ray job stop <submission id>`: what is in flight is published and committed.

A job does not survive the head of its cluster, unless Ray keeps the head's state elsewhere and the
job's driver runs on another node (docs/kubernetes.md), and Ray starts none again that has ended.
A supervisor does, with --follow: systemd with Restart=always, or
deploy/kubernetes/components/supervisor. Not on-failure: a driver whose node is drained ends its job
well. With --follow and without --upload, a job that runs already with the same command is followed
in place of a second one, so that a supervisor that was killed takes its job back.

Exit code: 0 the monitor has started, or with --follow ended well; 1 the job failed, or the cluster
refused or did not answer; 2 it was called wrongly.
"""
DASHBOARD = "http://127.0.0.1:8265"
START_S = 900.0
"""How long a job may take to be placed and to start its monitor on a cold cluster."""
SILENCE_S = 600.0
"""How long a cluster may not answer: a head that is replaced takes minutes."""
ANSWER_S = 30.0
"""How long one request may take: Ray's client itself waits for ever."""
LOOK_EVERY_S = 1.0
LAST_LINES = 30
"""Of the log of a job that failed."""
STARTED = "monitor_started"
"""The event that `nap-stream run` logs when all is checked and its actors start."""
KNOWN = "already exists"
"""What Ray says of a submission id that it knows."""

T = TypeVar("T")


class _FailedError(Exception):
    """What is wrong, for people, and the exit code."""

    def __init__(self, problem: str, code: int = 1) -> None:
        super().__init__(problem)
        self.code = code


def main() -> int:
    """Submit, wait, and say what came of it."""
    parser = _parser()
    if len(sys.argv) == 1:
        parser.print_help()
        return 2
    arguments = parser.parse_args()
    try:
        config, folder = _configuration(arguments.config, upload=arguments.upload)
        _require_ray()
        _run(config, folder, arguments.run, on=arguments.on, follow=arguments.follow)
    except _FailedError as error:
        _say(error)
        return error.code
    except KeyboardInterrupt:
        _say("no longer watched; the job goes on")
        return 130
    return 0


def _run(
    config: str, folder: str | None, options: list[str], *, on: str | None, follow: bool
) -> None:
    from ray.exceptions import AuthenticationError  # noqa: PLC0415  see `_require_ray`

    address = os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    shown = _shown(address)
    stop = threading.Event()
    if follow:
        # Before anything is submitted: what is asked meanwhile holds for the job, too.
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        job = _Job.submit(address, config, options, folder, on, takes_back=follow)
        if follow:
            asyncio.run(job.follow(stop))
        else:
            job.wait_for_start()
    except AuthenticationError as error:
        problem = f"the Ray cluster at {shown} wants a token.\n{_how_to_send_one()}"
        raise _FailedError(problem) from error
    except OSError as error:  # requests' errors among them
        problem = f"no Ray cluster answers at {shown}: RAY_API_SERVER_ADDRESS names its dashboard"
        raise _FailedError(problem) from error
    except (RuntimeError, ValueError) as error:
        said = _short(error).replace(address, shown)
        raise _FailedError(f"the Ray cluster at {shown} refused: {said}") from error


class _Job:
    """A job that was submitted. Calls raise what Ray's client raises."""

    def __init__(self, client: "JobSubmissionClient", request: dict[str, Any]) -> None:
        self._client, self._request = client, request
        self._name: str = request["submission_id"]
        self._answered_at = time.monotonic()
        self._shown = 0
        self._is_stopping = False

    @classmethod
    def submit(
        cls,
        address: str,
        config: str,
        options: list[str],
        folder: str | None,
        on: str | None,
        *,
        takes_back: bool,
    ) -> "_Job":
        """Submit it, and say how it is stopped; or take back the one that runs already.

        An uploaded file has no path that tells it from others: such a job is never taken back.
        """
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415  see `_require_ray`

        # Ray kills the entrypoint 3 s after SIGTERM unless this says otherwise.
        wait_s = os.environ.get("NAP_STREAM_STOP_WAIT_S", "45")
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": wait_s}}
        if folder is not None:
            environment["working_dir"] = folder
        client = _within(ANSWER_S, lambda: JobSubmissionClient(address))
        command = shlex.join(("python", "-m", "nap_stream", "run", "--config", config, *options))
        running = _running(client, command) if takes_back and folder is None else None
        name = os.environ.get("NAP_STREAM_JOB_ID") or f"nap-stream-{int(time.time())}"
        request = {
            "entrypoint": command,
            "submission_id": running or name,
            "runtime_env": environment,
            "entrypoint_resources": None if on is None else {on: 1},
        }
        job = cls(client, request)
        done = "submitted as" if job._submit(may_be_there=running is not None) else "took back"
        name = job._name
        _say(f"{done} {name}; to stop it: ray job stop --address {_shown(address)} {name}")
        return job

    def _submit(self, *, may_be_there: bool) -> bool:
        """Whether it was submitted; False where it is there already.

        Of a job that is there this has Ray look whether it lives. A new head believes what the old
        one kept, and says RUNNING of a job that died with it, until it is asked to submit or stop.
        """
        try:
            _within(SILENCE_S, lambda: self._client.submit_job(**self._request))
        except RuntimeError as error:
            if may_be_there and KNOWN in str(error):
                return False
            raise
        return True

    def wait_for_start(self) -> None:
        """Return when the monitor has started, or the job has ended."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            info = self._info()
            if info is not None and info.status.is_terminal():
                self._say_end(info)
                return
            log = self._log() if info is not None and info.status == "RUNNING" else ""
            for line in log.splitlines():
                if STARTED in line:
                    _say(
                        f"the monitor has started; {_metrics(line)}its log: "
                        f"ray job logs --follow {self._name}"
                    )
                    return
            time.sleep(LOOK_EVERY_S)
        raise _FailedError(
            f"{self._tail()}\nthe job has not started its monitor for {START_S:g} s, and goes on: "
            f"ray job stop {self._name} ends it"
        )

    async def follow(self, stop: threading.Event) -> None:
        """Show its log until it ends; stop it in good order once ``stop`` is set."""
        tail = asyncio.create_task(self._show())
        is_told = was_silent = False
        while True:
            # A connection ends with the job, or with the head, which may come back.
            if tail.done():
                tail = asyncio.create_task(self._show())
            if stop.is_set() and not is_told:
                is_told = await _aside(self._stop)
            info = await _aside(self._info)
            if info is None:
                tail.cancel()  # one to a head that is gone may never end
            elif info.status.is_terminal():
                await asyncio.wait({tail}, timeout=ANSWER_S)
                tail.cancel()
                self._say_end(info)
                return
            elif was_silent:
                with suppress(Exception):
                    await _aside(lambda: self._submit(may_be_there=True))
            was_silent = info is None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _show(self) -> None:
        """Show what is new in the log, until the connection ends, well or badly."""
        skip = self._shown
        with suppress(Exception):
            async for text in self._client.tail_job_logs(self._name):
                new = text[skip:]
                skip = max(0, skip - len(text))
                self._shown += len(new)
                print(new, end="", flush=True)

    def _stop(self) -> bool:
        """Whether the cluster took it that the job is to stop; where not, to be called again."""
        is_first, self._is_stopping = not self._is_stopping, True
        if is_first:
            _say(f"stopping {self._name}")
        try:
            return _within(ANSWER_S, lambda: self._client.stop_job(self._name))
        except Exception as error:  # noqa: BLE001  `_info` judges what is more than a delay
            if is_first:
                _say(f"the cluster does not take it, and is asked again: {_short(error)}")
            return False

    def _info(self) -> Any:
        """What the cluster says of the job; None where it does not answer for a while.

        Raises:
            _FailedError: The cluster no longer knows the job.
            OSError, RuntimeError: It has not answered, or only with errors, for too long.
        """
        try:
            info = _within(ANSWER_S, lambda: self._client.get_job_info(self._name))
        except (OSError, RuntimeError) as error:  # requests' errors among them
            if "status code 404" in str(error):
                raise _FailedError(
                    f"the cluster no longer knows {self._name}: its head kept nothing"
                ) from error
            if time.monotonic() - self._answered_at > SILENCE_S:
                raise
            return None
        self._answered_at = time.monotonic()
        return info

    def _log(self) -> str:
        with suppress(OSError, RuntimeError):
            return _within(ANSWER_S, lambda: self._client.get_job_logs(self._name))
        return ""

    def _tail(self) -> str:
        return "\n".join(self._log().splitlines()[-LAST_LINES:])

    def _say_end(self, info: Any) -> None:
        if info.status != "FAILED":
            _say(f"{self._name} has ended: {info.status.value.lower()}")
            return
        log = "" if self._shown else f"{self._tail()}\n"
        raise _FailedError(
            f"{log}{self._name} failed: {_short(info.message or 'Ray says no more')}"
        )


def _running(client: "JobSubmissionClient", command: str) -> str | None:
    """The job with this command that has not ended, as a supervisor that was killed leaves it."""
    jobs = [
        job
        for job in _within(ANSWER_S, client.list_jobs)
        if job.submission_id and job.entrypoint == command and not job.status.is_terminal()
    ]
    # Later ones are refused by the monitor itself.
    first = min(jobs, key=lambda job: job.start_time or 0, default=None)
    return None if first is None else first.submission_id


def _begin(call: Callable[[], T]) -> "Future[T]":
    """Have it done in a thread that keeps nobody from ending."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  it is the caller's
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives; TimeoutError, an OSError, where that takes longer."""
    return _begin(call).result(seconds)


async def _aside(call: Callable[[], T]) -> T:
    """What a call gives, while the loop goes on."""
    return await asyncio.wrap_future(_begin(call))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/ray-job.sh",
        usage="%(prog)s [--follow] [--upload] [--on RESOURCE] monitor.yaml [OPTION OF run ...]",
        description="Submits `nap-stream run` to a Ray cluster as a job.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--follow", action="store_true", help="show its log until it ends")
    parser.add_argument("--upload", action="store_true", help="upload the folder of the file")
    parser.add_argument(
        "--on",
        metavar="RESOURCE",
        help="run the driver on a node that has this resource of Ray, in place of the head",
    )
    parser.add_argument("config", metavar="monitor.yaml", help="the monitor's settings")
    parser.add_argument("run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _configuration(given: str, *, upload: bool) -> tuple[str, str | None]:
    """The file's path as the job is to have it, and the folder to upload, if any."""
    if "://" in given and {"?", "@"} & {*given}:
        raise _FailedError(
            "an address with ? or @ would stand in the job's command, and a secret in it\n"
            "Give s3://bucket/key, gs://bucket/key or az://container/key; credentials come from "
            "the environment of the nodes",
            code=2,
        )
    if given.startswith(("s3://", "gs://", "az://")) and not upload:
        return given, None
    path = Path(given)
    if path.is_file():
        whole = path.absolute()  # as named: a mounted ConfigMap is a link to a folder of the moment
        return (whole.name, str(whole.parent)) if upload else (str(whole), None)
    if upload or not path.is_absolute() or path.exists():
        raise _FailedError(
            f"no such file: {path.absolute()}\n"
            "Name the monitor's YAML file, or its absolute path as the cluster's nodes see it",
            code=2,
        )
    _say(f"{path} is not on this machine: taken as the cluster's nodes see it")
    return str(path), None


def _require_ray() -> None:
    """Say so where it cannot be imported, which `--help` and a wrong path need not wait for."""
    try:
        import ray.job_submission  # noqa: F401, PLC0415
    except ImportError as error:
        problem = f"{sys.executable} cannot import Ray: {error}"
        action = "Activate the environment that nap-stream is in, or name its Python: PYTHON=…"
        raise _FailedError(f"{problem}\n{action}") from error


def _how_to_send_one() -> str:
    from ray._raylet import (  # type: ignore[attr-defined]  # noqa: PLC0415  see `_require_ray`
        AuthenticationTokenLoader,
    )

    places = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
    has_one = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if has_one and os.environ.get("RAY_AUTH_MODE") == "token":
        return f"The one that is here is not that of the cluster's head. Looked in {places}"
    if has_one:
        return f"One is here ({places}): set RAY_AUTH_MODE=token to have it sent"
    return (
        "Set RAY_AUTH_MODE=token, and put the token of the cluster's head, where "
        f"`ray get-auth-token` shows it, into {places}"
    )


def _shown(address: str) -> str:
    """An address without the user and the password in it."""
    return re.sub(r"//[^/]*@", "//…@", address)


def _metrics(line: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return f"metrics: {json.loads(line)['metrics']}; "
    return ""


def _short(problem: object) -> str:
    """The last line that says something: Ray's own texts hold whole tracebacks."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


def _say(what: object) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
