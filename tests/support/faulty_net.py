"""The tiny net, with faults that a test switches on by files in a folder."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from tests.support.tiny_net import TinyNet, build

HANG = "hang"
SECONDS_PER_IMAGE = "seconds-per-image"
SECONDS_ONCE = "seconds-once"
SLOW = "slow-"
"""Begins the names of files with when each slow forward began and ended, one of each process."""


class FaultyNet(TinyNet):
    """Scores like the tiny net.

    Args:
        faults: A folder. Where it holds ``hang``, the next forward takes the file away and never
            returns. Where it holds ``seconds-once``, the next forward takes the file away, and
            takes so much longer. Where it holds ``seconds-per-image``, each forward takes so much
            longer. Those that take longer are the `slow_forwards`.
    """

    def __init__(self, faults: Path) -> None:
        super().__init__()
        self._faults = faults

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with suppress(FileNotFoundError):
            (self._faults / HANG).rename(self._faults / f"hung-{os.getpid()}")
            threading.Event().wait()
        seconds = 0.0
        with suppress(FileNotFoundError):
            seconds += len(x) * float((self._faults / SECONDS_PER_IMAGE).read_text())
        with suppress(FileNotFoundError):
            taken = (self._faults / SECONDS_ONCE).rename(self._faults / f"once-{os.getpid()}")
            seconds += float(taken.read_text())
        if seconds:
            began_s = time.monotonic()
            time.sleep(seconds)
            with (self._faults / f"{SLOW}{os.getpid()}").open("a") as file:
                file.write(f"{began_s} {time.monotonic()}\n")
        return super().forward(x)


def build_faulty(faults: str) -> FaultyNet:
    """The network with the tiny net's weights."""
    net = FaultyNet(Path(faults))
    net.load_state_dict(build().state_dict())
    return net


def hang_once(faults: Path) -> None:
    """Have the next forward of any process hang for ever."""
    (faults / HANG).touch()


def hung_pid(faults: Path) -> int | None:
    """The process whose forward hangs."""
    found = [int(path.name.removeprefix("hung-")) for path in faults.glob("hung-*")]
    return found[0] if found else None


def slow_down(faults: Path, seconds_per_image: float) -> None:
    """Have each forward take longer from now on."""
    _write(faults, SECONDS_PER_IMAGE, seconds_per_image)


def slow_down_once(faults: Path, seconds: float) -> None:
    """Have the next forward of any process take longer, however many images it is of."""
    _write(faults, SECONDS_ONCE, seconds)


def _write(faults: Path, name: str, seconds: float) -> None:
    partial = faults / f".{name}"
    partial.write_text(str(seconds))
    partial.rename(faults / name)


def slow_forwards(faults: Path) -> list[tuple[float, float]]:
    """When each slow forward of any process began and ended, on the machine's monotonic clock."""
    lines = [line for path in faults.glob(f"{SLOW}*") for line in path.read_text().splitlines()]
    return [(float(began), float(ended)) for began, ended in map(str.split, lines)]


def clear(faults: Path) -> None:
    """Take all faults away."""
    for path in faults.iterdir():
        path.unlink()
