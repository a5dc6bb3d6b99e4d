"""Options that several commands share."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.errors import ConfigError
from nap_stream.settings import KafkaSettings
from nap_stream.settings_loader import load_kafka_settings, load_settings

if TYPE_CHECKING:
    from nap_stream.scored_log.store import SegmentStore

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
    from nap_stream.scored_log.local_store import LocalStore
    from nap_stream.scored_log.stores import store_at

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
