"""nap-stream produce."""

from pathlib import Path
from typing import Annotated

import typer

from nap_stream.cli.options import BootstrapOption, ConfigOption, kafka_settings


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
    from nap_stream.cli.progress import progress_bar
    from nap_stream.dev.produce import produce as send_images
    from nap_stream.errors import ConfigError

    if topic is None and config is None:
        raise ConfigError("expected --topic NAME or --config FILE")
    settings = kafka_settings(config, bootstrap_servers, topic)
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
