"""Options that several commands share.

Whether results can be written, asked before the work that leads to them.

A progress bar where a person waits, silence where a machine does.

How a command uses torch: imported only by commands that run the model.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nap_stream.errors import ConfigError
from nap_stream.settings.load import load_kafka_settings, load_settings
from nap_stream.settings.schema import KafkaSettings

if TYPE_CHECKING:
    import torch

    from nap_stream.cli.calibrate import Device
    from nap_stream.scored_log.stores.base import SegmentStore

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The monitor's YAML file.", show_default=False)
]
LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar="ROOT",
        help="The root of the scored log, a folder or s3://bucket/prefix, instead of --config.",
        show_default=False,
    ),
]
BootstrapOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Brokers as host:port,…, instead of --config."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="A folder to keep the model's outputs in, so that nothing is computed twice. Delete "
        "it when the model's code changes; another --batch-size finds nothing in it.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads of torch on the CPU; its own default without it. One is quickest beside "
        "a busy neighbour.",
        show_default=False,
    ),
]


def log_store(config: Path | None, log: str | None) -> "SegmentStore":
    """Where the scored log lies, from either option.

    Raises:
        ConfigError: If neither or both are given, or the root is neither a folder that is there
            nor an address in an object store.
    """
    from nap_stream.scored_log.stores import store_at
    from nap_stream.scored_log.stores.local import LocalStore

    if (config is None) == (log is None):
        raise ConfigError("expected either --log ROOT or --config FILE")
    store = store_at(log if log is not None else load_settings(_given(config)).log.root)
    if isinstance(store, LocalStore) and not Path(store.root).is_dir():
        raise ConfigError("no such folder", store.root, "Give the root of a scored log")
    return store


def kafka_settings(
    config: Path | None, bootstrap_servers: str | None, topic: str | None
) -> KafkaSettings:
    """How to reach Kafka, from either option; ``topic`` replaces the configured one.

    Raises:
        ConfigError: If neither or both are given, or a value is wrong.
    """
    if (config is None) == (bootstrap_servers is None):
        raise ConfigError("expected either --bootstrap-servers HOST:PORT or --config FILE")
    if config is not None:
        # Quoted, because a value from the environment is read as YAML.
        named = {} if topic is None else {"NAP_STREAM__KAFKA__TOPIC": json.dumps(topic)}
        return load_kafka_settings(config, {**os.environ, **named})
    try:
        return KafkaSettings(
            bootstrap_servers=(bootstrap_servers or "").split(","), topic=topic or "unused"
        )
    except ValueError as error:
        raise ConfigError(
            f"expected HOST:PORT, got {bootstrap_servers!r}, and a topic's name, got {topic!r}",
            "--bootstrap-servers, --topic",
        ) from error


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


def require_can_make(folder: Path) -> None:
    """Refuse a folder that can neither be written nor made.

    Raises:
        ConfigError: It, or what stands in its place or above it, is a file, or not writable.
    """
    place = folder.resolve()
    while not (place.exists() or place == place.parent):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{place.name} is not a folder", str(folder), "Choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{place} cannot be written", str(folder), "Choose a folder that can be written"
        )


Advance = Callable[[int, int | None], None]
NewBar = Callable[[str, str], Advance]
"""From what is done and its unit to a function that takes (done, total or None)."""


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[NewBar]:
    """A function that makes bars, shown on stderr while the block runs.

    Each bar stands below those before it, from when it is first told of something.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def new_bar(what: str, unit: str) -> Advance:
            task: TaskID | None = None

            def advance(done: int, total: int | None) -> None:
                nonlocal task
                if task is None:
                    task = progress.add_task(what, total=total, unit=unit)
                progress.update(task, completed=done, total=total)

            return advance

        yield new_bar


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[Advance]:
    """A function that takes (done, total or None), shown on stderr while the block runs."""
    with progress_bars() as new_bar:
        advance = new_bar(what, unit)
        advance(0, None)
        yield advance


def choose_torch(device: "Device", threads: int | None) -> "torch.device":
    """Give the device, and set the number of threads where one is given.

    Raises:
        GpuUnavailableError: CUDA is asked for and torch sees none.
    """
    import torch

    from nap_stream.model.load import choose_device

    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(0 if device.value == "cpu" else 1)
