"""Cameras that are rendered and scored by a real network, for `benchmarks.rendered_alarms`.

    python -m benchmarks.rendered_cameras FOLDER [--cameras 4] [--baseline-days 10]
        [--quiet-days 30] [--starts 5] [--fault-hours 72] [--seed 1]

It calibrates ResNet-20 on CIFAR-10 as `nap-stream calibrate` does, and scores each camera's frames
by that calibration: first those of a quiet time, then each injected fault from several starts on.
What is kept is a score a frame, in one file a camera, so that blocks are run on them as often as
one likes, and a camera that has a file is not scored again.

A camera has scenes of its own (photos and textures of the shared data), of which one lies before
it until the next one comes. Its crop wanders slowly over the scene, the light follows the hour and
the weather, noise grows in the dark, and at times it rains. So neighbouring frames are much alike,
nights differ from days, and cameras differ from one another. A day has `FRAMES_A_DAY` frames, one
in so many seconds of event time: days compressed into minutes. Everything follows from the seed,
the camera's number and the frame's: a fault that is injected later meets the frames that there
would have been without it.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms

from benchmarks.cifar_sets import DATA, SIDE
from benchmarks.networks import NETWORKS
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.pixels import blurred
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import SystemClock
from nap_stream.core.conformal import Rule
from nap_stream.model.load import load_model
from nap_stream.ood_scorer import OODScorer
from nap_stream.settings.schema import LimitSettings, ScoringSettings

NETWORK = "ResNet-20"
ALPHA = 0.05
BATCH = 240
START_MS = 1_767_225_600_000
"""2026-01-01 in UTC, a Thursday."""
FRAMES_A_DAY = 1_440
FRAME_MS = 86_400_000 // FRAMES_A_DAY
SCENE_SIDE = 96
PHOTOS, TEXTURES = 10, 2
"""Scenes of a camera."""
CHUNK = 240
"""Frames that are rendered together, and that share a generator of noise."""
_DWELL = 4
_STEP = 0.08
_CROP_SMALL, _CROP_LARGE = 0.45, 0.7
_NIGHT_GAIN = 0.4
_WEATHER_FRAMES, _WEATHER_SD = 60, 0.12
_NOISE_DAY, _NOISE_NIGHT = 0.01, 0.04
_DRY, _WET = 600, 60
_DROPS = 0.012
_RAIN_LIGHT = 0.35
_WALL = 0.6
_BLUR = 1 / 16
"""Share of the side: about what `calibrate` calls defocus, whose disc has this radius."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """What the cameras of one site may see, uint8 (N, 3, SCENE_SIDE, SCENE_SIDE) each.

    ``products`` are what no camera has seen before: hand signs.
    """

    photos: Tensor
    textures: Tensor
    products: Tensor


def load_scenes() -> Scenes:
    """Decode the shared photos, textures and hand signs."""
    return Scenes(
        _decoded("imagenet_photos600.parquet", 1),
        _decoded("textures_dtd5x120.parquet", 4),
        _decoded("sign_language_digits.parquet", 40),
    )


def _decoded(name: str, step: int) -> Tensor:
    rows = []
    for data in pq.read_table(DATA / name, columns=["image"])["image"].to_pylist()[::step]:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = transforms.resize(decode_image(raw, ImageReadMode.RGB), [SCENE_SIDE])
        rows.append(transforms.center_crop(image, [SCENE_SIDE, SCENE_SIDE]))
    return torch.stack(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """What lies before a camera in each of T frames, arrays (T,).

    ``scene`` int64, its number of the camera's; ``down``, ``across`` float64 in [0, 1], where the
    crop lies in its room; ``size`` its side, as a share of the scene's; ``gain`` the light, 1 in
    full day; ``rain`` bool.
    """

    scene: NDArray[np.int64]
    down: NDArray[np.float64]
    across: NDArray[np.float64]
    size: NDArray[np.float64]
    gain: NDArray[np.float64]
    rain: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A camera's own scenes, uint8 (S, 3, SCENE_SIDE, SCENE_SIDE), and its way through time."""

    number: int
    seed: int
    scenes: Tensor
    way: Way


def camera(scenes: Scenes, number: int, frames: int, seed: int) -> Camera:
    """Draw a camera and what it meets in so many frames."""
    rng = np.random.default_rng([seed, number])
    photos = scenes.photos[rng.choice(len(scenes.photos), PHOTOS, replace=False)]
    textures = scenes.textures[rng.choice(len(scenes.textures), TEXTURES, replace=False)]
    own = torch.cat((photos, textures))
    return Camera(number, seed, own, _way(rng, frames, len(own)))


def _way(rng: np.random.Generator, frames: int, scenes: int) -> Way:
    shares = rng.dirichlet(np.full(scenes, 2.0))
    comes = rng.random(frames) < 1 / _DWELL
    drawn = rng.choice(scenes, size=frames, p=shares)
    newest = np.maximum.accumulate(np.where(comes, np.arange(frames), 0))
    down, across, size = (
        _folded(rng.normal(0, _STEP, frames).cumsum() + rng.random()) for _ in "123"
    )
    hour = np.arange(frames) % FRAMES_A_DAY / FRAMES_A_DAY
    sun = 1 / (1 + np.exp(8 * np.cos(2 * np.pi * hour)))
    day = _NIGHT_GAIN + (1 - _NIGHT_GAIN) * sun
    return Way(
        drawn[newest],
        down,
        across,
        _CROP_SMALL + (_CROP_LARGE - _CROP_SMALL) * size,
        day * np.exp(_WEATHER_SD * _slow(rng, frames, _WEATHER_FRAMES)),
        _two_states(rng, frames, _DRY, _WET),
    )


def _folded(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """A walk between two walls at 0 and 1."""
    return np.abs((places + 1) % 2 - 1)


def _slow(rng: np.random.Generator, frames: int, memory: float) -> NDArray[np.float64]:
    """A stationary AR(1) series of variance 1 that forgets in so many frames."""
    keep = np.exp(-1 / memory)
    noise = rng.normal(0, np.sqrt(1 - keep**2), frames)
    noise[0] = rng.normal()
    values = np.empty(frames)
    before = 0.0
    for number, new in enumerate(noise):
        before = keep * before + new
        values[number] = before
    return values


def _two_states(rng: np.random.Generator, frames: int, off: float, on: float) -> NDArray[np.bool_]:
    """Off and on in turn, each for a geometric number of frames of that mean."""
    state, rows = rng.random() < on / (off + on), []
    total = 0
    while total < frames:
        length = int(rng.geometric(1 / (on if state else off)))
        rows.append(np.full(length, state))
        total, state = total + length, not state
    return np.concatenate(rows)[:frames]


Fault = Callable[[Camera, "Frames", Scenes], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Frames from ``start`` on of a camera before the light, float (N, 3, SIDE, SIDE).

    ``since`` float64 (N,) is how many frames ago the fault began.
    """

    start: int
    pixels: Tensor
    since: NDArray[np.float64]


def render(camera: Camera, start: int, end: int, scenes: Scenes, fault: str = "") -> Tensor:
    """Give frames ``[start, end)``, uint8 (N, 3, SIDE, SIDE), of a camera that is well or not.

    A fault begins with the first of them. ``start`` is a multiple of `CHUNK`.
    """
    if start % CHUNK:
        raise ValueError(f"expected a start at a multiple of {CHUNK}, got {start}")
    parts = []
    for first in range(start, end, CHUNK):
        last = min(first + CHUNK, end)
        frames = Frames(
            first, _crops(camera, first, last), np.arange(first, last, dtype=np.float64) - start
        )
        pixels = _OPTICS[fault](camera, frames, scenes) if fault in _OPTICS else frames.pixels
        lit = _lit(camera, first, pixels)
        parts.append(_SENSOR[fault](lit, frames.since) if fault in _SENSOR else lit)
    return torch.cat(parts)


def _crops(camera: Camera, first: int, last: int) -> Tensor:
    way = camera.way
    taken = camera.scenes[torch.from_numpy(way.scene[first:last])].float()
    return _sampled(taken, way, first, last)


def _sampled(images: Tensor, way: Way, first: int, last: int) -> Tensor:
    """Cut each frame's crop out of its image, and average it down to SIDE x SIDE pixels."""
    size = torch.from_numpy(way.size[first:last])
    places = [
        (2 * torch.from_numpy(p[first:last]) - 1) * (1 - size) for p in (way.across, way.down)
    ]
    matrices = torch.zeros(len(images), 2, 3)
    matrices[:, 0, 0], matrices[:, 1, 1] = size, size
    matrices[:, 0, 2], matrices[:, 1, 2] = places
    grid = functional.affine_grid(
        matrices, [len(images), 3, 2 * SIDE, 2 * SIDE], align_corners=False
    )
    fine = functional.grid_sample(images, grid, align_corners=False)
    return functional.avg_pool2d(fine, 2)


def _lit(camera: Camera, first: int, pixels: Tensor) -> Tensor:
    """Rain, light and noise over what lies before the camera."""
    last = first + len(pixels)
    generator = torch.Generator().manual_seed(_seed(camera, first))
    rain = torch.from_numpy(camera.way.rain[first:last])[:, None, None, None]
    gain = torch.from_numpy(camera.way.gain[first:last]).float()[:, None, None, None]
    drops = (torch.rand(len(pixels), 1, SIDE, SIDE, generator=generator) < _DROPS).float()
    streaks = functional.conv2d(drops, torch.ones(1, 1, 5, 1), padding="same").clamp(0, 1)
    wet = torch.where(rain, pixels + (230 - pixels) * _RAIN_LIGHT * streaks, pixels)
    spread = _NOISE_DAY + (_NOISE_NIGHT - _NOISE_DAY) * (1 - gain).clamp(0, 1)
    noise = torch.randn(wet.shape, generator=generator)
    return (gain * wet + 255 * spread * noise).clamp(0, 255).round().to(torch.uint8)


def _seed(camera: Camera, first: int) -> int:
    sequence = np.random.SeedSequence([camera.seed, camera.number, first])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _turned_away(camera: Camera, frames: Frames, scenes: Scenes) -> Tensor:
    """A camera that was knocked: a plain wall takes the right half of its picture."""
    del camera, scenes
    half = SIDE // 2
    wall = torch.full_like(frames.pixels[..., half:], 255 * _WALL)
    return torch.cat((frames.pixels[..., half:], wall), dim=3)


def _new_product(camera: Camera, frames: Frames, scenes: Scenes) -> Tensor:
    """Other objects than those that the camera ever saw, which come and go as its own do."""
    first, last = frames.start, frames.start + len(frames.pixels)
    chosen = torch.from_numpy(camera.way.scene[first:last] * 4 + camera.number) % len(
        scenes.products
    )
    return _sampled(scenes.products[chosen].float(), camera.way, first, last)


GROWS_FRAMES = FRAMES_A_DAY // 6
"""How long a blur grows, to what `calibrate` calls defocus: four hours."""


def _growing_blur(pixels: Tensor, since: NDArray[np.float64]) -> Tensor:
    """A lens that goes out of focus; in steps of 1/10, for frames of one step are done at once."""
    strength = np.ceil(10 * np.minimum(1, since / GROWS_FRAMES)) / 10
    result = pixels.clone()
    for step in np.unique(strength[strength > 0]):
        chosen = torch.from_numpy(strength == step)
        result[chosen] = blurred(pixels[chosen], _BLUR * float(step)).round().to(torch.uint8)
    return result


def _lens_cap(pixels: Tensor, since: NDArray[np.float64]) -> Tensor:
    """What `calibrate` calls a covered lens."""
    generator = torch.Generator().manual_seed(int(since[0]))
    return FAULTS["covered lens"](pixels, generator)


_OPTICS: Mapping[str, Fault] = MappingProxyType(
    {"turned away": _turned_away, "new product": _new_product}
)
"""Faults before the light falls in."""
_SENSOR: Mapping[str, Callable[[Tensor, NDArray[np.float64]], Tensor]] = MappingProxyType(
    {"growing blur": _growing_blur, "lens cap": _lens_cap}
)
"""Faults of lens and sensor."""
INJECTED: Mapping[str, str | None] = MappingProxyType(
    {
        "growing blur": "defocus",
        "lens cap": "covered lens",
        "turned away": None,
        "new product": None,
    }
)
"""The faults, and what `calibrate` calls each; it tries nothing like the last two."""


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    scorer = _scorer(folder)
    scenes = load_scenes()
    days = arguments.baseline_days + arguments.quiet_days
    lasts = arguments.fault_hours * FRAMES_A_DAY // 24
    rng = np.random.default_rng([arguments.seed, 77])
    for number in range(arguments.cameras):
        own = camera(scenes, number, days * FRAMES_A_DAY, arguments.seed)
        chunks = FRAMES_A_DAY // CHUNK
        first, last = arguments.baseline_days * chunks, days * chunks - lasts // CHUNK
        starts = (
            np.sort(rng.choice(np.arange(first, last), arguments.starts, replace=False)) * CHUNK
        )
        path = folder / f"camera-{number}.npz"
        if not path.exists():
            arrays = _scored(scorer, own, scenes, starts, lasts)
            np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub lacks names of arrays


def _scorer(folder: Path) -> OODScorer:
    """The network's own, calibrated on its own images; made once a folder."""
    (folder / "sets").mkdir(exist_ok=True)
    network = NETWORKS[NETWORK](folder / "sets")
    artifact = folder / "calibration"
    if not artifact.exists():
        request = CalibrationRequest(
            model=network.model,
            scoring=ScoringSettings(),
            images=network.inside,
            fit_images=network.fit,
            rule=Rule(ALPHA),
            weight=None,
            batch_size=BATCH,
            limits=LimitSettings(),
        )
        found = calibrate(request, device=torch.device("cpu"), clock=SystemClock())
        write_calibration(found, artifact)
    print("what `calibrate` sees of faults: share flagged, images to the alarm", flush=True)
    for seen in load_calibration(artifact).document.faults:
        print(f"  {seen.fault}: {seen.flagged:.2f}, {seen.alarm}", flush=True)
    return OODScorer(artifact, load_model(network.model, torch.device("cpu")).module)


def _scored(
    scorer: OODScorer, own: Camera, scenes: Scenes, starts: NDArray[np.int64], lasts: int
) -> dict[str, NDArray[Any]]:
    """Score a camera's quiet time, and each fault for ``lasts`` frames from each start on."""
    began, frames = time.monotonic(), len(own.way.scene)
    quiet, p_values = _scores(scorer, own, scenes, (0, frames), "")
    faults = {
        fault: np.stack(
            [
                _scores(scorer, own, scenes, (start, start + lasts), fault)[0]
                for start in starts.tolist()
            ]
        )
        for fault in INJECTED
    }
    seconds = round(time.monotonic() - began)
    print(json.dumps({"camera": own.number, "frames": frames, "seconds": seconds}), flush=True)
    time_ms = START_MS + FRAME_MS * np.arange(frames)
    return {"starts": starts, "quiet": quiet, "quiet_p": p_values, "time_ms": time_ms, **faults}


def _scores(
    scorer: OODScorer, own: Camera, scenes: Scenes, span: tuple[int, int], fault: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of a span of frames, and p-values against the network's own images: (N,) each.

    They are rendered and scored a day at a time; a fault is rendered in one go, since it grows.
    """
    start, end = span
    step = FRAMES_A_DAY if not fault else end - start
    scores, p_values = [], []
    for first in range(start, end, step):
        pixels = render(own, first, min(first + step, end), scenes, fault)
        for batch in torch.split(pixels, BATCH):
            found = scorer(batch)
            scores.append(found.score.numpy())
            p_values.append(found.ood_p_value.numpy())
    return np.concatenate(scores), np.concatenate(p_values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--baseline-days", type=int, default=10)
    parser.add_argument("--quiet-days", type=int, default=30)
    parser.add_argument("--starts", type=int, default=5, help="of each fault, for each camera")
    parser.add_argument("--fault-hours", type=int, default=72, help="how long each fault lasts")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
