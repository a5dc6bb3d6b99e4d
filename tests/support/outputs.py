"""Outputs of a model as messages have them: columns of Arrow, in every form of the map."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support.image_bytes import arrow_stream_of

Arrays = dict[str, NDArray[Any]]
FORMS = ("nested", "metadata", "tensor", "channels")


def fixed(array: NDArray[Any]) -> pa.Array:
    """Fixed-size lists within each other, (n, …)."""
    found = pa.array(array.ravel())
    for size in array.shape[:0:-1]:
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def lists(array: NDArray[Any]) -> pa.Array:
    """Lists of any length, (n, D)."""
    return pa.array([list(row) for row in array], pa.list_(pa.from_numpy_dtype(array.dtype)))


def batch_of(arrays: Arrays, form: str = "nested", **more: Any) -> pa.RecordBatch:
    """A batch of ``logits``, ``features`` and ``feature_map``, (n, …) each; and more columns."""
    columns: dict[str, pa.Array] = {}
    fields: list[pa.Field] = []

    def add(name: str, column: Any, metadata: dict[str, str] | None = None) -> None:
        array = column if isinstance(column, pa.Array) else pa.array(column)
        columns[name] = array
        fields.append(pa.field(name, array.type, metadata=metadata))

    for name, array in arrays.items():
        if name != "feature_map" or form == "nested":
            add(name, fixed(array))
        elif form == "metadata":
            flat = array.reshape(len(array), -1)
            add(name, lists(flat), {"shape": str(list(array.shape[1:]))})
        elif form == "tensor":
            add(name, pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array)))
        else:
            positions = array.reshape(*array.shape[:2], -1)
            add("channel_max", fixed(positions.max(axis=2)))
            add("channel_mean", fixed(np.abs(positions).mean(axis=2, dtype=array.dtype)))
    for name, column in more.items():
        add(name, column)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))


def stream_of(arrays: Arrays, form: str = "nested", **more: Any) -> bytes:
    """The same as a message's value."""
    return arrow_stream_of([batch_of(arrays, form, **more)])


def outputs_of(net: nn.Module, pixels: torch.Tensor) -> Arrays:
    """What a net of ``features`` and ``head`` gives for its input (N, 3, H, W)."""
    assert isinstance(net.features, nn.Module)
    with torch.inference_mode():
        maps = net.features(pixels)
        found = {"logits": net(pixels), "features": maps.mean(dim=(2, 3)), "feature_map": maps}
    return {name: value.numpy() for name, value in found.items()}


def some_outputs(count: int = 3, seed: int = 0) -> Arrays:
    """Random ones: 5 logits, 4 features, a map of 4 x 2 x 3, float32."""
    random = np.random.default_rng(seed)
    shapes = {"logits": (5,), "features": (4,), "feature_map": (4, 2, 3)}
    return {
        name: random.normal(size=(count, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
