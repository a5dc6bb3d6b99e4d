"""ONNX models, run by onnxruntime, with their maps and the features as outputs of their graph.

What enters the last global poolings, or is flattened for the head, is found in the graph: together
they must lie on every way from the images to the logits. They and the head's input become outputs.
"""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.exported import QUANTISED, sides_of
from nap_stream.model.facts import FeatureSite, HeadSite, MapLayout
from nap_stream.model.onnx_graph import Flow, Graph, Head, MapEnd
from nap_stream.text import described

_INSTALL = "pip install 'nap-stream[onnx]'"
_QUANTISED_NODES = ("QLinear", "QuantizeLinear", "DequantizeLinear", "Integer", "DynamicQuantize")
_CHANNELS = 3


class OnnxModel(nn.Module):
    """An ONNX graph, as a classifier whose maps and head can be watched.

    ``feature_map`` is called on the map, ``feature_map_1`` and so on on further ones, ``head`` on
    the features. Its state dict is the head and a digest of the file. A graph of a fixed batch is
    run on parts of that size.
    """

    digest: torch.Tensor

    def __init__(
        self,
        session: "_Session",
        ends: Sequence[MapEnd],
        flow: Flow,
        head: Head | None,
        logits: str,
    ) -> None:
        super().__init__()
        self.feature_map = nn.Identity()
        self.head = None if head is None else head.linear()
        self.register_buffer("digest", session.digest)
        self._session, self._ends, self._flow = session, tuple(ends), flow
        self._last = logits if head is None else head.features
        self._maps: dict[str, str] = {}

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the one size of image that it is for; None where it takes more."""
        return sides_of(self._session.input_shape)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of images (N, 3, H, W), float32."""
        last, *maps = self._session.run(images, [self._last, *self._maps.values()])
        for name, found in zip(self._maps, maps, strict=True):
            self.get_submodule(name)(found)
        if self.head is None:
            return last
        logits: torch.Tensor = self.head(last)
        return logits

    def sites(self, batch: torch.Tensor) -> tuple[FeatureSite, HeadSite | None]:
        """Find where the prior and the features are read by a pass on a batch.

        Raises:
            FeatureMapError: There is a way around all global poolings and flattenings of maps.
        """
        names = [
            name for end in self._ends for name in (end.source, end.result) if name is not None
        ]
        shapes = {}
        if names:
            unique = list(dict.fromkeys(names))
            values = self._session.run(batch, unique)
            shapes = {name: tuple(one.shape) for name, one in zip(unique, values, strict=True)}
        valid = {
            end.step: (end, axis)
            for end in self._ends
            if (axis := end.channels(shapes, len(batch))) is not None
        }
        is_named = any(end.result is None for end in self._ends)
        steps = list(valid) if is_named else self._flow.cut(valid)
        if not steps:
            raise FeatureMapError(
                "no global pooling or flattening of a map of one row an image and more than one "
                "position lies on every way from the images to the logits; the last values of the "
                f"graph are {', '.join(self._session.listed)}",
                "model.feature_layer",
                "Name the value that is the map (N, C, H, W), or use a larger model.preprocessing."
                "crop, if the map has one position only. Attention and weighted means are "
                "read where the model is given as a program of torch.export or a TorchScript "
                "archive",
            )
        found: dict[str, FeatureSite] = {}
        self._maps = {}
        for step in reversed(steps):
            end, axis = valid[step]
            name = f"feature_map_{len(found)}" if found else "feature_map"
            if end.source not in self._maps.values():
                if name not in self._modules:
                    self.add_module(name, nn.Identity().eval())
                self._maps[name] = end.source
                found[name] = _site(name, shapes[end.source], axis)
        first, *others = found.values()
        site = replace(first, also=tuple(others))
        if self.head is None:
            return site, None
        return site, HeadSite("head", (self.head.out_features, self.head.in_features))


def _site(name: str, shape: tuple[int, ...], channels: int) -> FeatureSite:
    sides = [side for axis, side in enumerate(shape) if axis not in {0, channels}]
    height, width = sides if len(sides) > 1 else (1, sides[0])
    layout = MapLayout(len(shape), channels)
    return FeatureSite(
        "module_output", name, None, 0, (shape[channels], height, width), layout=layout
    )


def load_onnx(path: Path, output: str | None = None, feature_layer: str | None = None) -> OnnxModel:
    """Read an ONNX file, and find its map, head and logits.

    ``output`` and ``feature_layer`` name values of the graph; null finds them.

    Raises:
        ModelError: onnxruntime is not installed; or the file cannot be read, is quantised, or has
            other inputs than images.
        FeatureMapError: The map was not found.
    """
    where = f"model.weights = {path}"
    onnx, runtime = _packages(where)
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ModelError(f"the ONNX file cannot be read ({described(error)})", where) from error
    nodes = list(model.graph.node)
    quantised = [
        node.op_type for node in nodes if any(part in node.op_type for part in _QUANTISED_NODES)
    ]
    if quantised:
        raise ModelError(f"the ONNX model is quantised ({quantised[0]})", where, QUANTISED)
    logits = _logits(model, output, where)
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    tensors |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in nodes
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    images = _image_input(model, tensors, where)
    graph = Graph(nodes, images, logits, tensors)
    found = graph.head()
    ends = tuple(graph.map_ends()) if feature_layer is None else (graph.named(feature_layer),)
    present = {value.name for value in model.graph.output}
    wanted = [name for end in ends for name in (end.source, end.result) if name is not None]
    for name in dict.fromkeys([*wanted, *([found.features] if found else []), logits]):
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = _Session(runtime, model, _digest(path, tensors), where, graph.listed())
    return OnnxModel(session, ends, graph.flow(), found, logits)


class _Session:
    """A session of onnxruntime. It is for any number of threads, and so never copied."""

    def __init__(
        self,
        runtime: Any,
        model: Any,
        digest: torch.Tensor,
        where: str,
        listed: Sequence[str],
    ) -> None:
        self.digest, self.listed = digest, tuple(listed)
        self._runtime, self._where = runtime, where
        try:
            self._serialised = model.SerializeToString()
            self._sessions = {"cpu": self._opened(["CPUExecutionProvider"])}
        except Exception as error:
            raise ModelError(
                f"onnxruntime cannot load the ONNX model ({described(error)})", where
            ) from error
        self._input = self._sessions["cpu"].get_inputs()[0]
        self._is_last = self._input.shape[-1] == _CHANNELS and self._input.shape[1] != _CHANNELS
        first = self._input.shape[0]
        self._batch = first if isinstance(first, int) and first > 0 else None

    @property
    def input_shape(self) -> tuple[object, ...]:
        """The sides of the input; text stands for one that may change."""
        return tuple(self._input.shape)

    def __deepcopy__(self, _memo: object) -> "_Session":
        return self

    def run(self, images: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """The values of these names, float32 on the device of the images."""
        session = self._on(images.device)
        dtype = np.float16 if "float16" in self._input.type else np.float32
        pixels = images.permute(0, 2, 3, 1) if self._is_last else images
        given = pixels.detach().float().cpu().numpy().astype(dtype)
        size = self._batch or max(1, len(given))
        parts = []
        for start in range(0, len(given), size):
            part = given[start : start + size]
            padding = ((0, size - len(part)), *((0, 0),) * 3) if self._batch else ((0, 0),) * 4
            found = session.run(list(names), {self._input.name: np.pad(part, padding)})
            # What has other rows than images is left as it is, to be seen as that.
            parts.append([one[: len(part)] if len(one) == size else one for one in found])
        joined = (np.concatenate(column) for column in zip(*parts, strict=True))
        return [torch.from_numpy(one.astype(np.float32)).to(images.device) for one in joined]

    def _on(self, device: torch.device) -> Any:
        if device.type not in self._sessions:
            provider = "CUDAExecutionProvider"
            if provider not in self._runtime.get_available_providers():
                raise ModelError(
                    "onnxruntime has no CUDA here",
                    self._where,
                    "pip install onnxruntime-gpu in place of onnxruntime, or set "
                    "worker.num_gpus: 0",
                )
            options = [(provider, {"device_id": device.index or 0}), "CPUExecutionProvider"]
            self._sessions[device.type] = self._opened(options)
        return self._sessions[device.type]

    def _opened(self, providers: Sequence[Any]) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        return self._runtime.InferenceSession(self._serialised, options, providers=providers)


def _packages(where: str) -> tuple[Any, Any]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ModelError(
            f"ONNX needs onnx and onnxruntime ({described(error)})", where, _INSTALL
        ) from error


def _logits(model: Any, output: str | None, where: str) -> str:
    names = [value.name for value in model.graph.output]
    inner = {name for node in model.graph.node for name in node.output}
    if output is not None:
        if output not in inner:
            raise ModelError(
                f"the graph has no value {output!r}; its outputs are {', '.join(names)}",
                "model.output",
                "Name the output, or any value of the graph, that holds the logits",
            )
        return output
    if len(names) == 1 or "logits" in names:
        return "logits" if "logits" in names else names[0]
    raise ModelError(
        f"the ONNX model has several outputs: {', '.join(names)}",
        where,
        f"Say which holds the logits, as in model.output: {names[0]}",
    )


def _image_input(model: Any, tensors: dict[str, Any], where: str) -> str:
    names = [value.name for value in model.graph.input if value.name not in tensors]
    if len(names) != 1:
        raise ModelError(
            f"the ONNX model has the inputs {', '.join(names) or '(none)'}, expected images alone",
            where,
            "Export it with the images as its one input",
        )
    return str(names[0])


def _digest(path: Path, tensors: dict[str, Any]) -> torch.Tensor:
    """SHA-256 of the file and of all tensors, some of which may stand in others; uint8 (32,)."""
    digest = hashlib.sha256(path.read_bytes())
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
