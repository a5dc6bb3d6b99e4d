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


class FaultyNet(TinyNet):
    """Scores like the tiny net.

    Args:
        faults: A folder. Where it holds ``hang``, the next forward takes the file away and never
            returns. Where it holds ``seconds-per-image``, each forward takes so much longer.
    """

    def __init__(self, faults: Path) -> None:
        super().__init__()
        self._faults = faults

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with suppress(FileNotFoundError):
            (self._faults / HANG).rename(self._faults / f"hung-{os.getpid()}")
            threading.Event().wait()
        with suppress(FileNotFoundError):
            time.sleep(len(x) * float((self._faults / SECONDS_PER_IMAGE).read_text()))
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
    partial = faults / f".{SECONDS_PER_IMAGE}"
    partial.write_text(str(seconds_per_image))
    partial.rename(faults / SECONDS_PER_IMAGE)


def clear(faults: Path) -> None:
    """Take all faults away."""
    for path in faults.iterdir():
        path.unlink()
