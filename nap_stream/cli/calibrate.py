"""nap-stream calibrate.

nap-stream calibration.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import CacheOption, ThreadsOption
from nap_stream.core.tails import Sides


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
    fit_images: Annotated[
        Path | None,
        typer.Option(
            help="In-distribution images to fit scores and the weight on, such as training "
            "images; without it a third of --images, which then does not calibrate.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="Share of in-distribution images to be flagged."),
    ] = 0.05,
    method: Annotated[
        str | None,
        typer.Option(
            help="The score that flags: nap, energy, knn, …, nap-energy, …, fisher-knn, …; "
            "without it scoring.method of the configuration.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of the base score in the method, the rest is NAP's; without it the weight is "
            "chosen on pseudo-OOD images.",
            show_default=False,
        ),
    ] = None,
    sides: Annotated[
        Sides,
        typer.Option(
            help="Flag low scores, or those at either end; fisher methods look at both ends of "
            "NAP already."
        ),
    ] = Sides.ONE,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="Hold alpha within each predicted class (Mondrian)."),
    ] = False,
    cache: CacheOption = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.CPU,
    torch_threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration in --out.")] = False,
) -> None:
    """Run the model over held-out in-distribution images and write what scores are judged by.

    The images must not be among those that the model was trained on.

    \b
    Example:
      nap-stream calibrate --model monitor.yaml --images held-out/ --out calibration/
    """
    from nap_stream.calibration.artifact import require_free, write_calibration
    from nap_stream.calibration.images import FeatureCache
    from nap_stream.calibration.run import CalibrationRequest
    from nap_stream.calibration.run import calibrate as run_calibration
    from nap_stream.cli.options import choose_torch, progress_bars, require_can_make
    from nap_stream.cli.tables import show_calibration
    from nap_stream.clock import SystemClock
    from nap_stream.core.conformal import Rule
    from nap_stream.process import configure_logging
    from nap_stream.settings.load import load_model_settings, load_scoring_settings
    from nap_stream.settings.schema import LimitSettings

    console = Console(stderr=True)
    configure_logging(for_people=console.is_terminal)
    require_free(out, force=force)
    # A new calibration is made beside its place, and then renamed.
    require_can_make(out.resolve().parent)
    request = CalibrationRequest(
        model=load_model_settings(model),
        scoring=load_scoring_settings(model, method=method),
        images=images,
        fit_images=fit_images,
        rule=Rule(alpha, sides, per_class),
        weight=weight,
        batch_size=batch_size,
        limits=LimitSettings(),
    )
    with progress_bars(console) as new_bar:
        calibration = run_calibration(
            request,
            device=choose_torch(device, torch_threads),
            clock=SystemClock(),
            cache=None if cache is None else FeatureCache(cache),
            progress=new_bar("calibrating", "images"),
        )
    write_calibration(calibration, out, force=force)
    show_calibration(calibration, out, Console())


def build_calibration_app() -> typer.Typer:
    """The commands about calibrations that are there."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.command()(show)

    @app.callback()
    def _root() -> None:
        """Look at a calibration."""

    return app


def show(
    folder: Annotated[Path, typer.Argument(help="The folder that `calibrate` wrote.")],
    png: Annotated[
        Path | None,
        typer.Option(
            help="Draw the scores, the threshold and the weight's curve to this file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what a calibration holds, for people; its JSON is for machines.

    \b
    Example:
      nap-stream calibration show calibration/ --png calibration.png
    """
    from nap_stream.calibration.artifact import load_calibration
    from nap_stream.cli.tables import show_calibration

    calibration = load_calibration(folder)
    show_calibration(calibration, folder, Console())
    if png is not None:
        from nap_stream.evaluation.pictures import draw_calibration

        draw_calibration(calibration, png)
        Console().print(f"drawn to {png}", markup=False)
