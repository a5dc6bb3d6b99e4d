"""nap-stream bench."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.cli.options import DeviceOption, progress_bars
from nap_stream.settings.load import load_settings

if TYPE_CHECKING:
    from nap_stream.bench import BenchResult
    from nap_stream.records import TimePart

BAR_CELLS = 30
PARTS: dict["TimePart", str] = {
    "model": "at work on a batch",
    "decode": "waiting for decoding",
    "messages": "waiting for messages",
    "log": "waiting for the log",
}


def bench(
    config: Annotated[Path, typer.Option("--config", "-c", help="The monitor's YAML file.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images, or Parquet with `image`, such as the stream's own; "
            "without it photos of 500 x 375 pixels are made up."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="How long each measurement takes.")] = 4.0,
    device: DeviceOption = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure how fast one worker is here, what limits it, and which setting to change.

    The model alone in each precision, decoding alone, and the whole line: decode, score, judge,
    log. Kafka and Ray are neither needed nor measured. The worker is the configured one, with the
    CPUs that worker.num_cpus says, or its share of this machine's.

    \b
    Example:
      nap-stream bench --config monitor.yaml --images held-out/
    """
    from nap_stream.bench import load_images, measure
    from nap_stream.cli.options import choose_torch
    from nap_stream.clock import SystemClock
    from nap_stream.process import configure_logging

    settings = load_settings(config)
    messages = Console(stderr=True)
    configure_logging(for_people=messages.is_terminal)
    data = load_images(images)
    with progress_bars(messages) as new_bar:
        result = measure(
            settings,
            data,
            device=choose_torch(device, settings.worker.torch_threads),
            seconds=seconds,
            clock=SystemClock(),
            progress=new_bar("measuring", "parts"),
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
        return
    show(result, "made up" if images is None else str(images), Console())


def show(result: "BenchResult", source: str, console: Console) -> None:
    """The result for people."""
    threads = result.threads
    console.print(
        Text(
            f"{result.images} images ({source}), one worker with {result.num_cpus} CPUs, "
            f"batches of {result.batch_size}, device {result.device}"
        )
    )
    if result.undecodable:
        console.print(Text(f"{result.undecodable} of them cannot be decoded", style="yellow"))
    table = Table("", "images/s", "of the model", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for row in result.forward:
        in_use = " (in use)" if row.in_use else ""
        rate = row.problem if row.images_per_s is None else f"{row.images_per_s:,.0f}"
        table.add_row(f"model alone, {row.execution}{in_use}", rate, "")
    table.add_row(
        f"decoding alone, {_counted(threads.decoding, 'thread')}",
        *_of_model(result.feed, result.model),
    )
    table.add_row(
        f"whole line, {_counted(threads.scoring, 'batch')} at once",
        *_of_model(result.line.images_per_second, result.model),
    )
    console.print(table)
    console.print("\nwhat the threads that score spend their time on")
    for part, name in PARTS.items():
        share = result.line.shares[part]
        bar = "█" * round(share * BAR_CELLS)
        console.print(Text(f"  {name:21} {bar:{BAR_CELLS}} {share:4.0%}"))
    console.print(Text(f"\n{result.advice}"))


def _counted(count: int, what: str) -> str:
    plural = "es" if what.endswith("h") else "s"
    return f"{count} {what}{'' if count == 1 else plural}"


def _of_model(rate: float, model: float) -> tuple[str, str]:
    return f"{rate:,.0f}", f"{rate / model:.2f}" if model else ""
