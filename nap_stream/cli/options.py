"""What several commands share: their options, what these mean, and progress bars.

Whatever takes long to import is imported by the functions that need it, so that ``--help`` is
quick.
"""

import json
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nap_stream.clock import Clock, Progress
from nap_stream.errors import ConfigError
from nap_stream.settings.topics import TopicSelection
from nap_stream.text import printable

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.progress import TaskID
    from rich.table import Table

    from nap_stream.scored_log.stores import SegmentStore
    from nap_stream.settings.schema import KafkaSettings, Settings


EvidenceOption = Annotated[
    str | None,
    typer.Option(
        "--evidence", metavar="ROOT", help="Where images are kept, instead of --config's."
    ),
]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The monitor's YAML file.")
]
ModelOption = Annotated[
    Path, typer.Option(help="A YAML file: the model section, or a whole configuration.")
]
BootstrapOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", help="Brokers as host:port,…, instead of --config."),
]
LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar="ROOT",
        help="The root of the scored log, a folder or an address (s3://, gs://, az://), "
        "instead of --config.",
    ),
]
TopicOption = Annotated[str | None, typer.Option(help="Only this topic.")]
SinceOption = Annotated[
    str | None, typer.Option(help="From this event time on: ISO 8601 (UTC), or 90m, 6h, 2d ago.")
]
UntilOption = Annotated[str | None, typer.Option(help="Before this event time.")]
CheckpointsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="KEYS",
        help="Compare with the signed checkpoints in the log, by these public keys: a file with "
        "one a line, as checkpoint-key prints them.",
    ),
]
JsonEventsOption = Annotated[
    bool, typer.Option("--json", help="One CloudEvent a line, for machines.")
]
JsonReportOption = Annotated[bool, typer.Option("--json", help="A JSON report.")]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="A folder to keep the model's outputs in, so that nothing is computed twice. Delete "
        "it when the model's code changes; another --batch-size finds nothing in it."
    ),
]
BatchSizeOption = Annotated[int, typer.Option(min=1)]
Device = Literal["cpu", "cuda"]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads of torch on the CPU; its own default without it. One is quickest beside "
        "a busy neighbour.",
    ),
]

KeySecretOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The secret of log.keys, where keys are hashed and no --config names it: --key and "
        "--header are looked for in clear and as hashes.",
    ),
]

_AGO = re.compile(r"^(\d+)([smhd])$")
_ISO = re.compile(r"\d{4}(?:-?\d\d-?\d\d|-?W\d\d(?:-?\d)?)(?:[Tt ].+)?", re.ASCII)
"""Python takes any character for the T, and the zone behind a day for a time of it."""
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def log_store(config: Path | None, log: str | None, *outputs: Path | None) -> "SegmentStore":
    """Where the scored log lies, from either option; ``outputs`` are to be written elsewhere.

    Raises:
        ConfigError: If neither or both are given, or the root is neither a folder that is there
            nor an address in an object store; or an output would be among the log's files.
    """
    from nap_stream.scored_log.stores import store_at
    from nap_stream.scored_log.stores.local import LocalStore

    if config is not None and log is None:
        from nap_stream.settings.load import load_settings

        store = store_at(load_settings(config).log.root)
    elif config is None and log is not None:
        store = store_at(log)
    else:
        raise ConfigError("expected either --log ROOT or --config FILE")
    if isinstance(store, LocalStore):
        if not Path(store.root).is_dir():
            raise ConfigError("no such folder", store.root, "Give the root of a scored log")
        for output in outputs:
            if output and output.resolve().is_relative_to(Path(store.root).resolve()):
                problem = "it is in the scored log, where nothing else belongs"
                raise ConfigError(problem, str(output), "Name another folder")
    return store


def hashes_of(
    config: Path | None, secret_file: Path | None, values: Iterable[bytes]
) -> tuple[tuple[bytes, bytes], ...]:
    """Values in clear with their hashes, where a configuration or a file has the secret.

    Those that are hashes are passed over.

    Raises:
        ConfigError: The configuration or the secret cannot be read.
    """
    if config is None and secret_file is None:
        return ()
    from nap_stream.core.hidden_keys import HiddenKeys, is_hash
    from nap_stream.settings.load import load_uncalibrated_settings
    from nap_stream.settings.log import hidden_keys, read_key_secret

    own = [value for value in dict.fromkeys(values) if value and not is_hash(value)]
    if secret_file is not None:
        hidden = HiddenKeys(secret=read_key_secret(secret_file, "--key-secret"))
    elif config is not None and own:
        hidden = hidden_keys(load_uncalibrated_settings(config).log.keys)
    else:
        return ()
    if own and hidden.secret:
        typer.echo("keys are looked for in clear, and as hashes by the secret", err=True)
    return tuple((value, hidden.hashed(value)) for value in own if hidden.secret)


def tell(words: str) -> None:
    """Say something beside the answer."""
    typer.echo(printable(words), err=True)


def tell_pruned(
    store: "SegmentStore",
    topic: str | TopicSelection | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    *,
    chains: Container[int] = (),
    offsets: tuple[int, int] | None = None,
) -> None:
    """Say on stderr what was pruned of what is asked for, before an error that it may explain.

    ``chains`` are numbers of partitions, none for all; ``offsets`` the first and the last.
    """
    from nap_stream.scored_log.read import partitions, partitions_read
    from nap_stream.scored_log.seals import told_pruned

    if isinstance(topic, TopicSelection):
        found = partitions_read(store, topic)
    else:
        found = partitions(store, topic)
    own = [p for p in found if not chains or p.partition in chains]
    for words in told_pruned(store, own, since_ms, until_ms, offsets):
        typer.echo(printable(f"pruned  {words}"), err=True)


def evidence_store(evidence: str | None, settings: "Settings | None") -> "SegmentStore | None":
    """Where images are kept, by either; None where nothing is.

    Raises:
        ConfigError: A root that is named by itself holds no folder of a day.
    """
    from nap_stream.scored_log.evidence import evidence_days
    from nap_stream.scored_log.stores import store_at

    if evidence is None:
        root = None if settings is None else settings.evidence.root
        return None if root is None else store_at(root)
    store = store_at(evidence)
    if not evidence_days(store):
        raise ConfigError("no evidence is there", evidence, "Name what evidence.root names")
    return store


def kafka_settings(
    config: Path | None, bootstrap_servers: str | None, topic: str | None
) -> "KafkaSettings":
    """How to reach Kafka, from either option; ``topic`` replaces the configured one.

    Raises:
        ConfigError: If neither or both are given, or a value is wrong.
    """
    from nap_stream.settings.load import load_kafka_settings
    from nap_stream.settings.schema import KafkaSettings

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


def span_ms(since: str | None, until: str | None, clock: Clock) -> tuple[int | None, int | None]:
    """What --since and --until mean, in milliseconds since the epoch.

    Raises:
        ConfigError: One of them is not a time, or nothing can lie between them.
    """
    now = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    since_ms, until_ms = _time_ms("--since", since, now), _time_ms("--until", until, now)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise ConfigError(
            f"{since} is not before {until}", "--since, --until", "Give the earlier one first"
        )
    return since_ms, until_ms


def time_ms(option: str, text: str, clock: Clock) -> int:
    """What an option's time means, in milliseconds since the epoch.

    Raises:
        ConfigError: It is no time.
    """
    found = _time_ms(option, text, datetime.fromtimestamp(clock.now_ms() / 1000, UTC))
    assert found is not None
    return found


def _time_ms(option: str, text: str | None, now: datetime) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 time, or of a time so long ago."""
    if text is None:
        return None
    ago = _AGO.match(text)
    try:
        if ago:
            when = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            when = datetime.fromisoformat(text if _ISO.fullmatch(text) else "")
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"not a time: {text!r}",
            option,
            "Expected 2026-11-23T10:00Z or 2026-11-23T10:00+01:00, or 90m, 6h, 2d ago",
        ) from error
    if when.tzinfo is None:
        typer.echo(f"{option}: {text} is taken as UTC", err=True)
        when = when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1000)


def choose_torch(device: Device, threads: int | None) -> "torch.device":
    """Give the device, and set the number of threads where one is given.

    Raises:
        GpuUnavailableError: CUDA is asked for and torch sees none.
    """
    import torch

    from nap_stream.model.load import choose_device

    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(0 if device == "cpu" else 1)


def require_can_make(folder: Path) -> None:
    """Refuse a folder that can neither be written nor made, before the work that leads to it.

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


def show_warnings(warnings: Iterable[str], console: "Console") -> None:
    """Sentences for people, one a line."""
    from rich.text import Text

    for warning in warnings:
        console.print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)


def pairs(rows: Iterable[tuple[str, str]]) -> "Table":
    """A table of names and what is said of them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    return table


NewBar = Callable[[str, str], Progress]
"""Makes a bar of what is done and its unit."""


@contextmanager
def progress_bars(console: "Console | None" = None) -> Iterator[NewBar]:
    """Bars on stderr while the block runs; nothing where it is not a terminal.

    Each bar stands below those before it, from when it is first told of something.
    """
    from rich import progress as display
    from rich.console import Console

    console = console or Console(stderr=True)
    columns = (
        display.TextColumn("{task.description}"),
        display.BarColumn(),
        display.MofNCompleteColumn(),
        display.TextColumn("{task.fields[unit]}"),
        display.TimeElapsedColumn(),
        display.TimeRemainingColumn(),
    )
    with display.Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def new_bar(what: str, unit: str) -> Progress:
            task: TaskID | None = None

            def advance(done: int, total: int | None) -> None:
                nonlocal task
                if task is None:
                    task = progress.add_task(what, total=total, unit=unit)
                progress.update(task, completed=done, total=total)

            return advance

        yield new_bar


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[Progress]:
    """A single bar, shown from the start."""
    with progress_bars() as new_bar:
        advance = new_bar(what, unit)
        advance(0, None)
        yield advance
