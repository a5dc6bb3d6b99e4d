"""Six cameras over handwritten digits, as a log of six days: what docs/baselines.md is tried on.

    .venv/bin/python -m benchmarks.baseline_site FOLDER
    cd FOLDER && nap-stream baseline --config monitor.yaml --since 2026-01-01 --until 2026-01-05 \
        --by "Ada Lovelace" --reason "four days of good parts" --out calibration-2

Each camera shows a digit for some six minutes, an image a minute, in a light that wanders; each has
a mean of its own. From 6 January, 12:00, the lens of the last lets 55 % of the light through. The
network and its calibration are those of the demo. Days that ``calibration-2`` judges are written
when that is there: run the script once more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from nap_stream.calibration.artifact import load_calibration
from nap_stream.clock import SystemClock
from nap_stream.demo.digits import DigitsNet, load_splits
from nap_stream.demo.display import Display
from nap_stream.demo.setup import (
    DemoFolder,
    demo_folder,
    make_calibration,
    make_model_and_images,
    write_configuration,
)
from nap_stream.ood_scorer import OODScorer
from nap_stream.records import TopicPartition
from tests.baselines.streams import DAY_MS, HOUR_MS, START_MS, Stream, Writer

SEED = 0
CAMERAS = tuple(f"camera-{number}" for number in range(6))
MINUTE_MS = 60_000
DWELL_MIN = 6
LIGHTS = np.geomspace(0.2, 1.0, 24)
MEANS = np.linspace(-0.7, -0.1, len(CAMERAS))
"""Of the logarithm of the light, by camera."""
WANDER, BACK = 0.06, 0.1
"""Of the logarithm of the light, in a minute: how far it goes, and which part of it goes back."""
DIM_MS, DIM = 5 * DAY_MS + 12 * HOUR_MS, 0.55
"""When the lens of the last camera gets dim, since the start, and how dim."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    second = root / "calibration-2"
    if not second.is_dir():
        with demo_folder(root) as folder:
            _set_up(folder)
            _write(folder, folder.calibration, 0, 4 * DAY_MS)
    else:
        _write(DemoFolder(root), second, 4 * DAY_MS, 6 * DAY_MS)


def _set_up(folder: DemoFolder) -> None:
    display = Display(Console(), SystemClock())
    make_model_and_images(folder, SEED, display)
    write_configuration(folder, broker="localhost:9092", metrics_port=9464, workers=1)
    make_calibration(folder, display, SystemClock())
    tree = yaml.safe_load(folder.config.read_text())
    tree["drift"] = {"keys": {"by": "key"}}
    folder.config.write_text(yaml.safe_dump(tree))


def _write(folder: DemoFolder, calibration: Path, start_ms: int, until_ms: int) -> None:
    """Log what the cameras show meanwhile, as a run with this calibration would."""
    scores = _scores(folder)
    digit, light = _shown(len(scores))
    writer = Writer(folder.log, load_calibration(calibration))
    minutes = np.arange(start_ms, until_ms, MINUTE_MS, dtype=np.int64) // MINUTE_MS
    level = np.abs(np.log(LIGHTS) - light[minutes][..., np.newaxis]).argmin(axis=-1)
    fused = scores[digit[minutes], level]
    for partition in range(2):
        own = range(partition, len(CAMERAS), 2)
        times = START_MS + minutes[:, np.newaxis] * MINUTE_MS + np.arange(len(CAMERAS))
        stream = Stream(
            times[:, own].ravel(),
            [CAMERAS[camera] for camera in own] * len(minutes),
            fused[:, own].ravel(),
        )
        writer.write(stream, TopicPartition("digits", partition))


def _shown(digits: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The digit, int64 (M, cameras), and the logarithm of its light, float64, of each minute."""
    rng = np.random.default_rng(SEED)
    size = 6 * DAY_MS // MINUTE_MS, len(CAMERAS)
    digit = np.zeros(size, dtype=np.int64)
    light = np.zeros(size)
    light[0] = MEANS
    for minute in range(1, size[0]):
        changes = rng.random(len(CAMERAS)) < 1 / DWELL_MIN
        digit[minute] = np.where(changes, rng.integers(0, digits, len(CAMERAS)), digit[minute - 1])
        back = BACK * (MEANS - light[minute - 1])
        light[minute] = light[minute - 1] + back + WANDER * rng.normal(size=len(CAMERAS))
    light[DIM_MS // MINUTE_MS :, -1] += np.log(DIM)
    return digit, light


def _scores(folder: DemoFolder) -> NDArray[np.float64]:
    """The score of each digit of the stream in each light, float64 (digits, lights)."""
    torch.set_num_threads(1)
    pixels = load_splits(SEED).stream.pixels
    network = DigitsNet()
    network.load_state_dict(load_file(folder.weights))
    scorer = OODScorer(folder.calibration, network.eval())
    columns = []
    for light in LIGHTS:
        images = torch.from_numpy((pixels * light).astype(np.uint8)).permute(0, 3, 1, 2)
        columns.append(scorer(images).score.numpy())
    return np.stack(columns, axis=1)


if __name__ == "__main__":
    main()
