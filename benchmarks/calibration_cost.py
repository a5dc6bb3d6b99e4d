"""What calibrating costs beside its own forward passes.

    python -m benchmarks.calibration_cost [--threads 1] [--images 600]

ResNet-18 with random weights at 224 x 224, calibrated with the default on real photos of about 40
KB. Prints the seconds of all forward passes, those of everything, and their ratio; ends with 1
where it is above what is allowed. More images make the ratio smaller: the number of pseudo-OOD and
faulty ones is bounded.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pyarrow.parquet as pq
import torch
from torchvision import models

from benchmarks.cifar_sets import DATA
from nap_stream.calibration.run import CalibrationRequest, calibrate
from nap_stream.clock import SystemClock
from nap_stream.core.conformal import Rule
from nap_stream.model import load
from nap_stream.model.forward import Forward, run_forward
from nap_stream.settings.schema import LimitSettings, ModelSettings, ScoringSettings

ALLOWED = 1.3


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = models.resnet18().eval()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    forward = 0.0
    passes = 0

    def timed(*inputs: torch.Tensor, **keywords: int) -> Forward:
        nonlocal forward, passes
        started = time.perf_counter()
        found = run_forward(*inputs, **keywords)  # type: ignore[arg-type]
        forward += time.perf_counter() - started
        passes += len(found.nap)
        return found

    with TemporaryDirectory() as folder, mock.patch.object(load, "run_forward", timed):
        images = Path(folder) / "images.parquet"
        photos = pq.read_table(DATA / "imagenet_photos600.parquet")
        pq.write_table(photos.slice(0, arguments.images), images)
        request = CalibrationRequest(
            model=ModelSettings(
                factory="benchmarks.calibration_cost:resnet",
                python_path=(Path(__file__).parents[1],),
                class_names=tuple(str(number) for number in range(1000)),
            ),
            scoring=ScoringSettings(),
            images=images,
            fit_images=None,
            rule=Rule(alpha=0.05, per_class=False),
            weight=None,
            batch_size=32,
            limits=LimitSettings(),
        )
        started = time.perf_counter()
        calibrate(request, device=torch.device("cpu"), clock=SystemClock())
        everything = time.perf_counter() - started
    print(f"{passes} forward passes: {forward:.1f} s; calibrating: {everything:.1f} s")
    print(f"ratio {everything / forward:.2f}, allowed {ALLOWED:g}")
    raise SystemExit(0 if everything <= ALLOWED * forward else 1)


if __name__ == "__main__":
    main()
