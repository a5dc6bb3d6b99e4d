"""The JSON Schemas (draft 2020-12) that the package has of its alert events."""

import json
from importlib.resources import files
from typing import Any


def alert_schema() -> dict[str, Any]:
    return _schema("alert.schema.json")


def gap_schema() -> dict[str, Any]:
    return _schema("gap.schema.json")


def unscored_schema() -> dict[str, Any]:
    return _schema("unscored.schema.json")


def _schema(name: str) -> dict[str, Any]:
    text = files("nap_stream.alert").joinpath(name).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
