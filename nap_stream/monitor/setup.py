"""What a run is by, and what another setup has that is not so."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_stream.clouds import CLOUDS
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import ConfigError
from nap_stream.fetched import shown
from nap_stream.records import PartitionOffsets
from nap_stream.scored_log.history import differences
from nap_stream.settings.load import masked_tree
from nap_stream.settings.schema import Settings
from nap_stream.settings.values import Section

FIXED = {
    "kafka.bootstrap_servers": "the log has the offsets of one Kafka cluster",
    "kafka.topic": "it names the stream in alerts, checkpoints and metrics",
    "kafka.topics": "what is judged as one stream stays one",
    "kafka.topic_pattern": "what is judged as one stream stays one",
    "kafka.group_id": "by it the monitor is found, and others are kept from what it has",
    "log.root": "a chain goes on where it began",
    "alerts.monitor": "alerts that fire are ended under the name that they have",
    "alerts.topic": "alerts that fire are ended where they were told",
    "metrics.host": "whoever watches would lose sight of it",
    "metrics.port": "whoever watches would lose sight of it",
    "metrics.discovery_file": "whoever watches would lose sight of it",
}
"""What makes a monitor the one that it is, and why: another takes a stop and a start."""
READ_ANEW = frozenset(
    {
        "kafka.oauth.client_secret_file",
        "messages.registry.password_file",
        "messages.registry.bearer_token_file",
        "alerts.webhook.bearer_token_file",
        "log.checkpoints.key_file",
        "tracing.bearer_token_file",
    }
)
"""Files that are read for each use: another content is in force without a reload."""
WRITTEN = frozenset({"metrics.discovery_file"})
MAX_FILE_BYTES = 2**20
"""Of a file that settings name, for its content to be compared; of larger ones, size and time."""
NOT_SHOWN = "(not shown)"

Change = tuple[str, str, str]
"""Its name, and the value before and after, as people read them."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is by, once that is checked. ``files`` are digests of small files, by key."""

    settings: Settings
    calibration: CalibrationFacts
    offsets: Sequence[PartitionOffsets]
    files: Mapping[str, str]


def clouds_of(settings: Settings) -> set[str]:
    """The clouds whose secrets a run by these settings needs, by the schemes of their addresses.

    Each of which an address stands anywhere; S3's also where Kafka takes signatures by its keys.
    """
    found = {scheme for text in _texts(settings.model_dump()) if (scheme := _scheme(text))}
    return found | ({"s3"} if settings.kafka.sasl_mechanism == "AWS_MSK_IAM" else set())


def _scheme(text: str) -> str | None:
    scheme, mark, _ = text.partition("://")
    return scheme if mark and scheme in CLOUDS else None


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Path():
            yield shown(value)
        case dict():
            yield from _texts(tuple(value.values()))
        case list() | tuple():
            for each in value:
                yield from _texts(each)


def require_same_monitor(old: Settings, new: Settings, source: str) -> None:
    """Refuse settings of another monitor.

    Raises:
        ConfigError: Naming what differs.
    """
    # Words are cut: whether something differs, the values say.
    told = [
        f"{_words(name, old, new)}: {FIXED[name]}" for name in _differing(old, new) if name in FIXED
    ]
    if told:
        lines = "\n  ".join(("what makes it this monitor was changed", *told))
        raise ConfigError(
            told[0] if len(told) == 1 else lines,
            source,
            "Put it back; or stop the run, and start it anew by this file",
        )


def changes(old: Setup, new: Setup) -> tuple[Change, ...]:
    """What is another by a new setup; of what is secret, only that it is."""
    seen = tuple(differences(_shown(old), _shown(new)))
    names = {name for name, _, _ in seen}
    unseen = [
        key
        for key in _differing(old.settings, new.settings)
        if not any(name == key or name.startswith(f"{key}.") for name in names)
    ]
    files = [
        f"{key}, the file's content"
        for key in other_files(old.files, new.files)
        if not any(key == name or key.startswith(f"{name}.") for name in names)
    ]
    return (*seen, *((name, NOT_SHOWN, NOT_SHOWN) for name in (*unseen, *files)))


def other_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The keys of files whose content is another, or that were there only before, or are now."""
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def of_model(changed: Sequence[Change]) -> bool:
    """Whether another model may be loaded by what was changed, or by another calibration."""
    return any(name.startswith(("model", "calibration")) for name, _, _ in changed)


def begins_anew(changed: Sequence[Change]) -> bool:
    """Whether the window of what was judged fits no more."""
    return any(n.startswith(("calibration_finger", "drift.", "log.keys")) for n, _, _ in changed)


def file_digests(settings: Section) -> dict[str, str]:
    """SHA-256, in hexadecimal, of the small files that settings name, by key.

    Of larger ones, such as weights, size and time stand for it. Those that cannot be read are left
    out, and so is what is read for each use and what the program itself writes.
    """
    found = {}
    for key, path in _paths(settings, ""):
        if key in READ_ANEW or key in WRITTEN:
            continue
        try:
            if path.is_file():
                found[key] = _content(path)
        except OSError:
            continue
    return found


def _content(path: Path) -> str:
    about = path.stat()
    if about.st_size > MAX_FILE_BYTES:
        return f"{about.st_size} bytes of {about.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_words(changed: Sequence[Change]) -> list[str]:
    """Changes as a person reads them."""
    return [f"{name}: {was} → {now}" for name, was, now in changed]


def _shown(setup: Setup) -> dict[str, Any]:
    return {
        "calibration_fingerprint": setup.calibration.fingerprint,
        "model_fingerprint": setup.calibration.model_fingerprint,
        "settings": masked_tree(setup.settings),
    }


def _words(key: str, old: Settings, new: Settings) -> str:
    """What a key is now and was, in words that tell the two apart."""
    found = differences({"settings": masked_tree(old)}, {"settings": masked_tree(new)})
    for name, was, now in found:
        if name == key:
            return f"{name} is {now}, and {was} in the run"
    return f"{key} is another than in the run, in what is too long to be shown"


def _differing(old: Section, new: Section, above: str = "") -> Iterator[str]:
    """The keys of values that differ, secrets too."""
    for name in type(old).model_fields:
        was, now = getattr(old, name), getattr(new, name)
        if was == now:
            continue
        if isinstance(was, Section) and type(was) is type(now):
            yield from _differing(was, now, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """The paths within settings, by key."""
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name), f"{key}.{name}".removeprefix("."))
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _paths(each, f"{key}.{number}")
