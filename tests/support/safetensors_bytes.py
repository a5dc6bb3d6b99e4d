"""Safetensors files that numpy cannot hold, made on the spot."""

import json

FOREIGN_DTYPES = {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of a value, by the dtype's name."""


def of_foreign_dtype(dtype: str, name: str = "score", count: int = 5) -> bytes:
    """A whole, well-formed file of one tensor."""
    size = count * FOREIGN_DTYPES[dtype]
    tensor = {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}
    header = json.dumps({name: tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)
