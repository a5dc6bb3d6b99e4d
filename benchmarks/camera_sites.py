"""Sites of simulated cameras, frame by frame, for any interpreter: numpy and scipy alone.

A frame a minute of each camera, as -ln p of its p-value. Scores are an AR(1) series with a mean of
each camera's own and a swing from day to night; frames within some minutes of each other are
dependent. A fault turns a share of a camera's frames flagged, in runs of some minutes too.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

FRAMES_A_DAY = 1_440
ALPHA = 0.05
LOG_ALPHA = -float(np.log(ALPHA))
"""A frame whose -ln p is at least that is flagged."""
FEED_FRAMES = 30
"""Peers that take too long a frame, or want independent values, get means of so many frames."""
NEVER = np.inf
"""The delay of a fault that was not seen."""
_MEMORY = 0.75
_CAMERAS_DIFFER, _DAY_AND_NIGHT = 0.3, 0.5
_RUN_FRAMES = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """From frame ``start`` of site ``site`` on, ``strength`` of the frames of ``cameras`` turn."""

    name: str
    site: int
    start: int
    cameras: tuple[int, ...]
    strength: float
    seed: int


def site(rng: np.random.Generator, cameras: int, days: int) -> NDArray[np.float32]:
    """Give -ln p of every frame, float32 (cameras, frames)."""
    frames = days * FRAMES_A_DAY
    noise = rng.normal(size=(cameras, frames + FRAMES_A_DAY))
    scale = np.sqrt(1 - _MEMORY**2)
    slow = lfilter([scale], [1.0, -_MEMORY], noise, axis=1)[:, FRAMES_A_DAY:]
    own = rng.normal(0, _CAMERAS_DIFFER, (cameras, 1))
    swing = rng.uniform(0, _DAY_AND_NIGHT, (cameras, 1))
    hour = 2 * np.pi * (np.arange(frames) % FRAMES_A_DAY) / FRAMES_A_DAY
    p = np.clip(ndtr(slow + own + swing * np.cos(hour)), 1e-6, 1 - 1e-6)
    found: NDArray[np.float32] = -np.log(p).astype(np.float32)
    return found


def faulty(quiet: NDArray[np.float32], fault: Fault) -> NDArray[np.float32]:
    """Give the frames of the faulty cameras, float32 (C, frames), also before the fault."""
    rng = np.random.default_rng(fault.seed)
    frames = quiet[list(fault.cameras)].copy()
    size = frames.shape[1] - fault.start
    for row in frames:
        turned = _runs(rng, size, fault.strength)
        later = row[fault.start :]
        later[turned] = LOG_ALPHA + rng.exponential(size=int(turned.sum()))
    return frames


def _runs(rng: np.random.Generator, size: int, share: float) -> NDArray[np.bool_]:
    """On and off in turn, on for a share of the time and `_RUN_FRAMES` frames at a time, bool."""
    if share >= 1:
        return np.ones(size, dtype=np.bool_)
    off = _RUN_FRAMES * (1 - share) / share
    rounds = 4 * int(size / (off + _RUN_FRAMES)) + 20
    lengths = rng.geometric([1 / off, 1 / _RUN_FRAMES], size=(rounds, 2)).ravel()
    states = np.tile([False, True], rounds)
    phase = int(rng.integers(int(off + _RUN_FRAMES)))
    return np.repeat(states, lengths)[phase : phase + size]


def fed(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the means of `FEED_FRAMES` frames, float64 (..., T)."""
    *rest, size = frames.shape
    whole = size // FEED_FRAMES
    parts = frames[..., : whole * FEED_FRAMES].reshape(*rest, whole, FEED_FRAMES)
    means: NDArray[np.float64] = parts.mean(axis=-1, dtype=np.float64)
    return means


def faults_at(
    sites: int,
    cameras: int,
    frames: tuple[int, int],
    *,
    strengths: tuple[float, ...],
    runs: int,
    rng: np.random.Generator,
) -> list[Fault]:
    """Draw ``runs`` faults of each spread and strength, which begin in frames ``[first, last)``."""
    found = []
    for name, count in (("one camera", 1), ("all cameras", cameras)):
        for strength in strengths:
            for _ in range(runs):
                chosen = tuple(rng.choice(cameras, count, replace=False).tolist())
                start = int(rng.integers(*frames))
                seed = int(rng.integers(2**31))
                found.append(Fault(name, int(rng.integers(sites)), start, chosen, strength, seed))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """Quiet sites, float32 (S, K, T), their first ``baseline`` frames vouched for; and the faults.

    Frames from ``baseline`` on are watched. ``target_days`` is the time between two false alarms of
    a site that every detector is set to.
    """

    quiet: NDArray[np.float32]
    baseline: int
    faults: tuple[Fault, ...]
    target_days: float

    @classmethod
    def load(cls, path: Path) -> "Streams":
        """Read what `benchmarks.camera_delays` wrote."""
        with np.load(path) as file:
            task = json.loads(str(file["task"]))
            faults = tuple(
                Fault(**{**each, "cameras": tuple(each["cameras"])}) for each in task["faults"]
            )
            return cls(file["quiet"], task["baseline"], faults, task["target_days"])

    @property
    def watched(self) -> int:
        """Frames of a site."""
        return int(self.quiet.shape[2]) - self.baseline


def first_above(path: NDArray[np.float64], threshold: float, frames: int) -> float:
    """How many frames were watched when a path is above for the first time; or `NEVER`."""
    hits = np.flatnonzero(path > threshold)
    return float((hits[0] + 1) * frames) if len(hits) else NEVER


def threshold_for(paths: list[NDArray[np.float64]], frames: int, target: float) -> float:
    """The smallest threshold at which sites' first alarms are ``target`` frames apart on average.

    ``paths`` are of each site the largest statistic of all its detectors, every ``frames`` frames.
    """
    values = np.unique(np.concatenate([np.maximum.accumulate(path) for path in paths]))
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if (
            run_length([first_above(p, values[middle], frames) for p in paths], paths, frames)
            >= target
        ):
            high = middle
        else:
            low = middle + 1
    return float(values[low])


def run_length(firsts: Iterable[float], paths: list[NDArray[np.float64]], frames: int) -> float:
    """Frames watched until the first alarms, divided by their number."""
    seen = [min(first, len(path) * frames) for first, path in zip(firsts, paths, strict=True)]
    alarms = sum(first < NEVER for first in firsts)
    return float(sum(seen)) / alarms if alarms else NEVER
