"""nap-stream calibration."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
        from nap_stream.evaluation.calibration_picture import draw_calibration

        draw_calibration(calibration, png)
        Console().print(f"drawn to {png}", markup=False)
