"""nap-stream calibrate."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Device(StrEnum):
    """Where the model runs."""

    CPU = "cpu"
    CUDA = "cuda"


def calibrate(
    model: Annotated[
        Path,
        typer.Option(help="A YAML file: the model section, or a whole configuration."),
    ],
    images: Annotated[
        Path,
        typer.Option(help="Held-out in-distribution images: a folder, or Parquet with `image`."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the calibration to.")],
    alpha: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="Share of in-distribution images to be flagged."),
    ] = 0.05,
    weight: Annotated[
        float,
        typer.Option(min=0, max=1, help="Of energy in the fused score; the rest is NAP's."),
    ] = 0.4,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.CPU,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration in --out.")] = False,
) -> None:
    """Run the model over held-out in-distribution images and write what scores are judged by.

    The images must not be among those that the model was trained on.

    \b
    Example:
      nap-stream calibrate --model monitor.yaml --images held-out/ --out calibration/
    """
    from nap_stream.calibration.artifact import write_calibration
    from nap_stream.calibration.run import calibrate as run_calibration
    from nap_stream.cli.progress import progress_bar
    from nap_stream.cli.tables import show_calibration
    from nap_stream.clock import SystemClock
    from nap_stream.runtime.worker import choose_device
    from nap_stream.settings import LimitSettings
    from nap_stream.settings_loader import load_model_settings

    settings = load_model_settings(model)
    chosen = choose_device(0 if device is Device.CPU else 1)
    with progress_bar("calibrating", unit="images") as advance:
        calibration = run_calibration(
            settings,
            images,
            alpha=alpha,
            weight=weight,
            batch_size=batch_size,
            limits=LimitSettings(),
            device=chosen,
            clock=SystemClock(),
            progress=advance,
        )
    write_calibration(calibration, out, force=force)
    show_calibration(calibration, out, Console())
