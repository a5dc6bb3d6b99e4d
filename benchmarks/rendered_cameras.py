"""Cameras that are rendered and scored by a real network, for `benchmarks.rendered_alarms`.

    python -m benchmarks.rendered_cameras FOLDER [--cameras 4] [--baseline-days 10]
        [--quiet-days 30] [--starts 5] [--fault-hours 72] [--seed 1]

It calibrates ResNet-20 on CIFAR-10 as `nap-stream calibrate` does, and scores each camera's frames
by that calibration: first those of a quiet time, then each injected fault from several starts on.
What is kept is a score a frame, in one file a camera, so that blocks are run on them as often as
one likes. See `benchmarks.rendered_scenes` for the cameras.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.networks import NETWORKS
from benchmarks.rendered_scenes import (
    CHUNK,
    FRAME_MS,
    FRAMES_A_DAY,
    INJECTED,
    Camera,
    Scenes,
    camera,
    load_scenes,
    render,
)
from nap_stream.calibration.artifact import load_calibration, write_calibration
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
    began, frames = time.monotonic(), len(own.path.scene)
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
