"""The threads of a worker that is stopped and told to end before it goes on."""

import signal
from multiprocessing.connection import Connection
from pathlib import Path

from nap_stream.clock import SystemClock
from nap_stream.pipeline.scoring import ScoringStage
from tests.faults.harness_processes import FORKS, Forked
from tests.pipeline.test_scoring import decode, score
from tests.support.waiting import PATIENCE_S, wait_until

STOPPED_S = 0.5
"""Longer than any thread of the stage waits for its next message."""


def _close_when_told(told: Connection) -> None:
    """Open a stage, and close it when SIGTERM has come, to a thread of the stage alone."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    stage = ScoringStage(
        decode,
        [score],
        batch_size=4,
        linger_s=0.0,
        decode_threads=1,
        max_decoded_images=10,
        clock=SystemClock(),
        observe=lambda _stage, _seconds: None,
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    told.send("open")
    told.recv()
    stage.close()


def test_a_stage_closes_after_a_stop_that_a_signal_ended() -> None:
    ours, theirs = FORKS.Pipe()
    process = Forked(_close_when_told, theirs)
    try:
        assert ours.poll(PATIENCE_S)
        ours.recv()
        process.signal(signal.SIGSTOP)
        wait_until(lambda: _state(process.pid) == "T", "the process to stop")
        SystemClock().sleep(STOPPED_S)
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
        ours.send("close")
        process.wait()
        assert process.exitcode == 0
    finally:
        process.signal(signal.SIGKILL)
        process.wait()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
