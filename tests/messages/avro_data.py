"""Avro schemas and data."""

import io
import json
from typing import Any

from fastavro import parse_schema, schemaless_writer

FRAME: dict[str, Any] = {
    "type": "record",
    "name": "Frame",
    "namespace": "camera",
    "fields": [
        {"name": "labels", "type": {"type": "array", "items": "float"}},
        {"name": "camera", "type": ["null", "string"], "default": None},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9}},
        {
            "name": "frame",
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Body",
                    "fields": [
                        {"name": "data", "type": ["null", "bytes", "string"]},
                        {"name": "size", "type": {"type": "map", "values": "int"}},
                    ],
                },
            ],
        },
    ],
}


def datum(schema: Any, value: Any) -> bytes:
    buffer = io.BytesIO()
    schemaless_writer(buffer, parse_schema(json.loads(json.dumps(schema))), value)
    return buffer.getvalue()


def frame(data: bytes | str | None, **changes: Any) -> bytes:
    value = {
        "labels": [0.5, 1.5],
        "camera": "north",
        "at": 1_500_000,
        "price": b"\x01",
        "frame": {"data": data, "size": {"w": 3}},
    }
    return datum(FRAME, value | changes)
