"""Reads settings from one YAML file and the environment: the only reader of either.

The environment wins over the file: ``NAP_STREAM__KAFKA__GROUP_ID=x`` sets ``kafka.group_id``.
Values from the environment are read as YAML, so that numbers, lists and null work. Relative
paths are taken from the folder of the YAML file. Where ``environ`` is None, it is the process's
own environment.

Whatever is wrong is a `ConfigError` that names the key, where it stands (file and line, or
environment variable) and what was expected. It never shows the value of a secret: see `is_secret`
and `_hides`. `masked_yaml` shows the settings in force without their secrets.
"""

import copy
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from nap_stream.errors import ConfigError
from nap_stream.fetched import fetched, is_address, shown
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.schema import (
    EVERY_KEY,
    KafkaSettings,
    ModelSettings,
    ScoringSettings,
    Settings,
)
from nap_stream.settings.values import MASKED, USER_INFO, AnyObject, SecretFile, Section
from nap_stream.text import without_secrets

Key = tuple[str | int, ...]
ENV_PREFIX = "NAP_STREAM__"
MAX_FETCHED_BYTES = 2**20
"""Of a configuration in an object store."""

_TELLING = re.compile(
    r"passw|secret|token|credential|(api|access|private|auth)[_-]?key", re.IGNORECASE
)
"""In the name of a value that is a secret, where no type says so."""
_FREE = ("model", "kwargs")
"""What these hold, no type says."""
_SENT = {("alerts", "runbook_url"), ("alerts", "dashboard_url")}
"""Links that every alert shows as they are: their queries say where to look."""

SettingsT = TypeVar("SettingsT", bound=Section)


@dataclass(frozen=True, slots=True)
class _Tree:
    """A configuration as read: the values, and the place of each key."""

    values: dict[str, Any]
    places: Mapping[Key, str]


class UncalibratedSettings(Settings):
    """Settings of a monitor that need not be calibrated yet.

    The folder of ``calibration`` may be missing, and so may the key, which then is not in
    ``model_fields_set``.
    """

    calibration: AnyObject = Field(default=Path("calibration"), validate_default=True)


def load_settings(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a monitor."""
    return _validate(Settings, _whole_tree(path, environ), path)


def load_uncalibrated_settings(
    path: Path, environ: Mapping[str, str] | None = None
) -> UncalibratedSettings:
    """The settings of a monitor before `nap-stream calibrate`, and after it."""
    return _validate(UncalibratedSettings, _whole_tree(path, environ), path)


def load_model_settings(path: Path, environ: Mapping[str, str] | None = None) -> ModelSettings:
    """The model section: of a whole configuration, or of a file that holds nothing else."""
    tree = _read_yaml(path)
    if "model" not in tree.values:
        return _validate(ModelSettings, tree, path)
    return _validate(ModelSettings, _section(_whole_tree(path, environ), "model"), path)


def load_scoring_settings(
    path: Path, environ: Mapping[str, str] | None = None, *, method: str | None = None
) -> ScoringSettings:
    """The scoring section of a configuration; the defaults for a file of the model alone.

    ``method`` takes the configured method's place.
    """
    section = _section_beside_model(path, environ, "scoring")
    if method is not None:
        section = _Tree(
            {**section.values, "method": method}, {**section.places, ("method",): "--method"}
        )
    return _validate(ScoringSettings, section, path)


def load_drift_settings(path: Path, environ: Mapping[str, str] | None = None) -> DriftSettings:
    """The drift section of a configuration; the defaults for a file of the model alone."""
    return _validate(DriftSettings, _section_beside_model(path, environ, "drift"), path)


def _section_beside_model(path: Path, environ: Mapping[str, str] | None, name: str) -> _Tree:
    is_whole = "model" in _read_yaml(path).values
    return _section(_whole_tree(path, environ), name) if is_whole else _Tree({}, {})


def load_kafka_settings(path: Path, environ: Mapping[str, str] | None = None) -> KafkaSettings:
    """The Kafka section of a configuration, for commands that need nothing else."""
    return _validate(KafkaSettings, _section(_whole_tree(path, environ), "kafka"), path)


def load_alert_settings(path: Path, environ: Mapping[str, str] | None = None) -> AlertSettings:
    """The alert section of a configuration, for commands that need nothing else."""
    return _validate(AlertSettings, _section(_whole_tree(path, environ), "alerts"), path)


def place_of(path: Path) -> Path:
    """Where a configuration stands, its folder resolved; an address as it is.

    A link is followed, as relative paths are meant from where the file is. Not one of a volume of
    Kubernetes: each update leads it, by ``..data``, to another folder, and deletes the one before.
    """
    if is_address(path):
        return path
    is_volume = (path.parent / "..data").is_symlink()
    return path.parent.resolve() / path.name if is_volume else path.resolve()


def masked_yaml(settings: Settings) -> str:
    """The settings in force as YAML, masked as in `masked_tree`.

    `load_settings` refuses the masked values: they must be filled in again.
    """
    return yaml.safe_dump(masked_tree(settings), sort_keys=False, allow_unicode=True)


def masked_tree(settings: Settings) -> dict[str, Any]:
    """The settings in force as JSON: without secrets, and what may be one in an address.

    That is user, password and query of any address, and the path of the webhook's. What a model's
    factory takes may be anything: there the names tell what is a secret, too.
    """
    tree: dict[str, Any] = _masked(settings.model_dump(mode="json", context=EVERY_KEY), ())
    return tree


def _masked(value: Any, key: Key) -> Any:
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, each in value.items():
            told = without_secrets(name, MASKED)
            # Two keys may differ in what is masked alone.
            told = f"{told} {len(found) + 1}" if told in found else told
            found[told] = _masked(each, (*key, name))
        return found
    if isinstance(value, list):
        return [_masked(each, key) for each in value]
    if not isinstance(value, str) or key in _SENT:
        return value
    is_secret = key[:2] == _FREE and any(_TELLING.search(str(name)) for name in key[2:])
    return MASKED if is_secret else without_secrets(value, MASKED)


def _whole_tree(path: Path, environ: Mapping[str, str] | None) -> _Tree:
    tree = _read_yaml(path)
    for key, place in tree.places.items():
        if is_secret(Settings, key) and _value_at(tree.values, key) is not None:
            raise ConfigError(
                "secrets are not read from this file",
                _where(place, key),
                f"Set {_env_name(key)} or {_dotted(key)}_file",
            )
    return _with_environment(tree, os.environ if environ is None else environ)


def _value_at(values: Any, key: Key) -> Any:
    for part in key:
        values = values[part]
    return values


def _section(tree: _Tree, name: str) -> _Tree:
    values = tree.values.get(name, {})
    if not isinstance(values, dict):
        raise ConfigError("expected keys and values", _where(tree.places[name,], (name,)))
    return _Tree(values, {key[1:]: at for key, at in tree.places.items() if key[:1] == (name,)})


def _read_yaml(path: Path) -> _Tree:
    place = shown(path)
    try:
        with fetched(path, ConfigError, max_bytes=MAX_FETCHED_BYTES) as file:
            text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror}", place, "Check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the configuration is not UTF-8 text", place) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Its own text quotes the line, which may hold a secret, as do tracebacks that it is in.
        raise _not_yaml(error, place) from None
    except ValueError:
        raise ConfigError(
            "not valid YAML: a date or a number with an impossible value", place
        ) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError("expected keys and values at the top level", place)
    return _Tree(values, dict(_places(node, place, ())))


def _not_yaml(error: yaml.YAMLError, path: str) -> ConfigError:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ConfigError("not valid YAML", path)
    mark = error.context_mark or error.problem_mark
    parts = [part for part in (error.context, error.problem) if part]
    # Names of tags and aliases are quoted: a value that begins with ! or * is taken for one.
    said = ", ".join(re.sub(r"'[^']{2,}'", "…", part) for part in parts)
    return ConfigError(
        f"not valid YAML: {said}", f"{path}:{mark.line + 1}", f"Look from column {mark.column + 1}"
    )


def _places(node: yaml.Node | None, path: str, key: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, child in node.value:
            text, line = str(name.value), name.start_mark.line + 1
            if text in lines:
                # Not by its name: a secret may stand in its place.
                raise ConfigError(
                    f"the same key stands here and in line {lines[text]}",
                    f"{path}:{line}",
                    "Remove one of them: YAML would take the last",
                )
            lines[text] = line
            inner = (*key, text)
            yield inner, f"{path}:{line}"
            yield from _places(child, path, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield (*key, index), f"{path}:{child.start_mark.line + 1}"
            yield from _places(child, path, (*key, index))


def _with_environment(tree: _Tree, environ: Mapping[str, str]) -> _Tree:
    """The tree with the environment's values laid over it."""
    values, places = copy.deepcopy(tree.values), dict(tree.places)
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        place = f"environment variable {name}"
        key = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
        _set(values, key, _env_value(key, environ[name], place), place)
        places[key] = place
        for length in range(1, len(key)):
            places.setdefault(key[:length], place)
    return _Tree(values, places)


def _env_name(key: Key) -> str:
    return ENV_PREFIX + "__".join(str(part).upper() for part in key)


def _env_value(key: Key, text: str, place: str) -> Any:
    if is_secret(Settings, key):
        return text
    try:
        value, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        raise ConfigError("not a YAML value", place) from None
    # They refuse keys that stand twice.
    dict(_places(node, place, ()))
    return value


def _set(values: dict[str, Any], key: tuple[str, ...], value: Any, place: str) -> None:
    inner: Any = values
    for part in key[:-1]:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise ConfigError(f"{_dotted(key[:-1])} holds no keys", place)
    inner[key[-1]] = value


def _validate(model: type[SettingsT], tree: _Tree, path: Path) -> SettingsT:
    folder = place_of(path).parent
    for key in _masked_keys(model, tree.values, ()):
        where = _where(_nearest(tree.places, key, path), _hidden_part(model, key) or key)
        raise ConfigError("a value is masked", where, f"Fill in what {MASKED} stands for")
    try:
        return model.model_validate(tree.values, context={"folder": folder})
    except ValidationError as error:
        raise _config_error(model, error, tree.places, path) from None


def _masked_keys(model: type[BaseModel], value: Any, key: Key) -> Iterator[Key]:
    """The keys of values that `masked_tree` has made. A password may be of any characters."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, each in pairs:
            if MASKED in str(name):
                yield key
            yield from _masked_keys(model, each, (*key, name))
    elif isinstance(value, str) and MASKED in value and not is_secret(model, key):
        yield key


def _config_error(
    model: type[BaseModel], error: ValidationError, places: Mapping[Key, str], path: Path
) -> ConfigError:
    """One error for all that pydantic found; ``path`` is named for keys that stand nowhere."""
    problems = [_describe(model, item, places, path) for item in error.errors()]
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} settings are wrong:\n{lines}", shown(path))


def is_secret(model: type[BaseModel], key: Key) -> bool:
    """Whether a key's value must never be shown or read from a plain file."""
    field = _field_at(model, key)
    return field is not None and SecretStr in _members(field.annotation)


def _is_hidden(model: type[BaseModel], key: Key) -> bool:
    """Whether an error must not show a key's value: part of it may be a secret.

    The same holds for what lies within such a value, and for a value in the place of a whole
    section: the section may hold such a key.
    """
    section = _section_at(model, key)
    is_within = _hidden_part(model, key) is not None
    return is_within or (section is not None and _holds_hidden(section))


def _hidden_part(model: type[BaseModel], key: Key) -> Key | None:
    """The beginning of a key that names a hidden value, which the rest lies within."""
    for length in range(1, len(key) + 1):
        field = _field_at(model, key[:length])
        if field is not None and _hides(field):
            return key[:length]
    return None


def _holds_hidden(section: type[BaseModel]) -> bool:
    return any(
        _hides(field) or any(_holds_hidden(inner) for inner in sections_of(field))
        for field in section.model_fields.values()
    )


def _hides(field: FieldInfo) -> bool:
    parts = _parts(field.rebuild_annotation())
    return not field.repr or any(part in (SecretStr, SecretFile) for part in parts)


def _parts(annotation: Any) -> Iterator[Any]:
    """A type, and all that it is made of: a dict may hold secrets, too."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _dotted(key: Key) -> str:
    """A key as people write it."""
    return ".".join(str(part) for part in key)


def _where(place: str, key: Key) -> str:
    return f"{place}, key {_dotted(key)}" if key else place


def _describe(
    model: type[BaseModel], item: Any, places: Mapping[Key, str], path: Path
) -> ConfigError:
    key = _known_part(model, item["loc"], places)
    place = _nearest(places, key, path)
    # Within a hidden value a key may be the secret, in place of its name.
    key = _hidden_part(model, key) or key
    where = _where(place, key)
    if item["type"] == "extra_forbidden":
        return _unknown_key(model, key, place)
    if item["type"] == "missing":
        return ConfigError("a value is missing", where, _meaning(model, key))
    problem, given = item["msg"].removeprefix("Value error, "), item["input"]
    if item["type"] == "model_type" and (section := _section_at(model, key)) is not None:
        problem = f"expected keys: {', '.join(section.model_fields)}"
    is_shown = isinstance(given, str | int | float | bool) and not _is_hidden(model, key)
    if is_shown and ", got " not in problem and not USER_INFO.search(str(given)):
        told = without_secrets(given) if isinstance(given, str) else given
        problem = f"{problem}, got {told!r}"
    return ConfigError(problem, where, _meaning(model, key))


def _nearest(places: Mapping[Key, str], key: Key, path: Path) -> str:
    """Where a key stands, or what is around it."""
    return next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), shown(path))


def _known_part(model: type[BaseModel], loc: Key, places: Mapping[Key, str]) -> Key:
    """The part of pydantic's location that people wrote: it ends where type tags begin."""
    key: Key = ()
    for part in loc:
        section = _section_at(model, key)
        if (*key, part) not in places and not (section and part in section.model_fields):
            break
        key = (*key, part)
    return key


def _unknown_key(model: type[BaseModel], key: Key, place: str) -> ConfigError:
    """An unknown key by its name, unless that may be a hidden value without its key."""
    if not str(key[-1]).isidentifier() and _is_hidden(model, key[:-1]):
        return ConfigError("a key is not a name", _where(place, key[:-1]), _suggestion(model, key))
    return ConfigError("unknown key", _where(place, key), _suggestion(model, key))


def _suggestion(model: type[BaseModel], key: Key) -> str:
    section = _section_at(model, key[:-1])
    known = sorted(section.model_fields) if section else []
    close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}"


def _meaning(model: type[BaseModel], key: Key) -> str:
    """The documentation of a key, as advice."""
    field = _field_at(model, key)
    return " ".join((field.description or "").split()) if field else ""


def _section_at(model: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """The section that a key names, or None where it names a value."""
    section = model
    for part in key:
        # A number is an element of a list: its sections are those of the list.
        if isinstance(part, int):
            continue
        field = section.model_fields.get(str(part))
        inner = sections_of(field) if field else ()
        if not inner:
            return None
        section = inner[0]
    return section


def _field_at(model: type[BaseModel], key: Key) -> FieldInfo | None:
    section = _section_at(model, key[:-1]) if key else None
    return section.model_fields.get(str(key[-1])) if section else None


def sections_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """The sections that a field's value may be."""
    members = _members(field.annotation)
    return tuple(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, tuple):
        return typing.get_args(annotation)
    return (annotation,)
