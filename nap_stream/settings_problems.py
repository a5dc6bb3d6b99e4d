"""Turns pydantic's validation errors into errors that say where a setting stands."""

import difflib
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from nap_stream.errors import ConfigError
from nap_stream.settings import SecretFile

Key = tuple[str | int, ...]

_USER_INFO = re.compile(r"://[^/?#\s]*@")
"""A user, and perhaps a password, in an address."""


def config_error(
    model: type[BaseModel], error: ValidationError, places: Mapping[Key, str], path: Path
) -> ConfigError:
    """One error for everything that is wrong with a configuration, values of secrets left out.

    Args:
        model: What was validated.
        error: What pydantic found.
        places: Where each key stands: file and line, or environment variable.
        path: The file, for keys that stand nowhere.
    """
    problems = [_describe(model, item, places, path) for item in error.errors()]
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} settings are wrong:\n{lines}", str(path))


def is_secret(model: type[BaseModel], key: Key) -> bool:
    """Whether a key's value must never be shown or read from a plain file."""
    field = _field_at(model, key)
    return field is not None and SecretStr in _members(field.annotation)


def _is_hidden(model: type[BaseModel], key: Key) -> bool:
    """Whether an error must not show a key's value: part of it may be a secret.

    So may be what stands in the place of a whole section that holds such a key.
    """
    section, field = _section_at(model, key), _field_at(model, key)
    return (section is not None and _holds_hidden(section)) or (field is not None and _hides(field))


def _holds_hidden(section: type[BaseModel]) -> bool:
    return any(
        _hides(field) or any(_holds_hidden(inner) for inner in _sections_of(field))
        for field in section.model_fields.values()
    )


def _hides(field: FieldInfo) -> bool:
    members = _members(field.annotation)
    return not field.repr or SecretStr in members or SecretFile in members


def dotted(key: Key) -> str:
    """A key as people write it."""
    return ".".join(str(part) for part in key)


def _describe(
    model: type[BaseModel], item: Any, places: Mapping[Key, str], path: Path
) -> ConfigError:
    key = _known_part(model, item["loc"], places)
    place = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), str(path))
    where = f"{place}, key {dotted(key)}" if key else place
    if item["type"] == "extra_forbidden":
        return _unknown_key(model, key, place)
    if item["type"] == "missing":
        return ConfigError("a value is missing", where, _meaning(model, key))
    problem, given = item["msg"].removeprefix("Value error, "), item["input"]
    if item["type"] == "model_type" and (section := _section_at(model, key)) is not None:
        problem = f"expected keys: {', '.join(section.model_fields)}"
    is_shown = isinstance(given, str | int | float | bool) and not _is_hidden(model, key)
    if is_shown and ", got " not in problem and not _USER_INFO.search(str(given)):
        problem = f"{problem}, got {given!r}"
    return ConfigError(problem, where, _meaning(model, key))


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
        where = f"{place}, key {dotted(key[:-1])}" if key[:-1] else place
        return ConfigError("a key that is no name", where, _suggestion(model, key))
    return ConfigError("unknown key", f"{place}, key {dotted(key)}", _suggestion(model, key))


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
        field = section.model_fields.get(str(part))
        inner = _sections_of(field) if field else ()
        if not inner:
            return None
        section = inner[0]
    return section


def _field_at(model: type[BaseModel], key: Key) -> FieldInfo | None:
    section = _section_at(model, key[:-1]) if key else None
    return section.model_fields.get(str(key[-1])) if section else None


def _sections_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """The sections that a field's value may be."""
    members = _members(field.annotation)
    return tuple(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
