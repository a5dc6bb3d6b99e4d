"""Write docs/configuration.md from the settings themselves: every key, type, default and meaning.

    python -m benchmarks.configuration_reference

A test compares the page with what this gives.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from nap_stream.settings.load import is_secret, sections_of
from nap_stream.settings.schema import Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Every key of `monitor.yaml`. This page is made from the settings themselves
(`python -m benchmarks.configuration_reference`). `nap-stream init` writes a first file, and
`nap-stream run --config monitor.yaml --print-config` shows the settings in force.

- Relative paths are taken from the folder of the file.
- An environment variable wins over the file; its value is read as YAML. Its name is
  `NAP_STREAM__` and the key in capitals, `__` between the parts: `kafka.topic` is
  `NAP_STREAM__KAFKA__TOPIC`.
- Secrets are read from the environment or from a file that is named, never from `monitor.yaml`.
- An unknown key is an error that names the nearest one.
"""
_CONSTRAINTS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


_WORDS = {
    "string": "text",
    "boolean": "`true` or `false`",
    "object": "keys and values",
    "null": "`null`",
}


def main() -> None:
    PAGE.write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_section(Settings, ())])


def _section(section: type[BaseModel], key: tuple[str, ...]) -> Iterator[str]:
    """The keys of a section, then those of the sections within."""
    schema = section.model_json_schema()
    definitions = schema.get("$defs", {})
    inner = {name: sections_of(field) for name, field in section.model_fields.items()}
    if key:
        yield f"## {' '.join(key)}\n"
        yield f"{_markdown(section.__doc__ or '')}\n"
    else:
        yield "## Top level\n"
    for name, field in section.model_fields.items():
        if inner[name] and not field.is_required() and field.default is not None and not key:
            continue
        types = _types(schema["properties"][name], definitions, len(inner[name]))
        yield _entry((*key, name), field, types, linked=bool(inner[name]))
    yield ""
    for name, sections in inner.items():
        for one in sections:
            yield from _section(one, (*key, name))


def _entry(key: tuple[str, ...], field: FieldInfo, types: list[str], *, linked: bool) -> str:
    dotted = ".".join(key)
    if linked:
        types = [f"keys, see [{dotted}](#{'-'.join(key)})", *types]
    if is_secret(Settings, key):
        types = ["secret"]
    is_shown = not linked or field.default is None or field.is_required()
    parts = [f"- `{dotted}`", " or ".join(types), *([_default(field)] if is_shown else [])]
    meaning = _markdown(field.description or "")
    return ", ".join(parts) + (f".\n  {meaning}" if meaning else ".")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"default `{text.removesuffix('...' + chr(10)).strip()}`"


def _types(schema: dict[str, Any], definitions: dict[str, Any], sections: int) -> list[str]:
    """The kinds of values in words, each once; without those of sections."""
    kinds = [one for one in schema.get("anyOf", [schema]) if not (sections and "$ref" in one)]
    return list(dict.fromkeys(_type(one, definitions) for one in kinds))


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " or ".join(_types(schema, definitions, 0))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "one of " + ", ".join(f"`{value}`" for value in values)
    kind: str = schema.get("type", "any value")
    if kind in {"integer", "number"}:
        limits = (
            f"{words} {schema[name]:,}" for name, words in _CONSTRAINTS.items() if name in schema
        )
        word = "whole number" if kind == "integer" else "number"
        return " ".join([word, " and ".join(limits)]).strip()
    if kind == "array":
        items = schema.get("prefixItems", [schema.get("items", {})])
        number = f" of {len(items)}" if "prefixItems" in schema else ""
        return f"list{number}, each {_type(items[0], definitions)}"
    if kind == "string" and schema.get("format") == "path":
        return "path"
    return _WORDS.get(kind, kind)


def _markdown(docstring: str) -> str:
    text = " ".join(docstring.split())
    return re.sub(r"``([^`]+)``", r"`\1`", text).replace("<", "&lt;")


if __name__ == "__main__":
    main()
