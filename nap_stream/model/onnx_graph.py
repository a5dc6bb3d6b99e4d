"""What can be asked of an ONNX graph: its head, and what ends maps on the way to the logits."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from nap_stream.errors import FeatureMapError

_GLOBAL = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceMax"})
_WINDOWS = frozenset({"AveragePool", "MaxPool"})
_FLATTENING = frozenset({"Flatten", "Reshape"})
_POOLINGS = _GLOBAL | _REDUCTIONS | _WINDOWS
_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "Tanh", "Gelu"}
    | {"Softplus", "Softsign", "HardSwish", "Mish", "Swish", "ThresholdedRelu"}
)
_SCALING = frozenset({"Mul", "Div", "Add", "Sub"})
_CLAMPING = frozenset({"Clip", "Max"})
_NEUTRAL = frozenset({"Identity", "Dropout", "Cast"})
_TRANSFORMS = frozenset(
    {"Pow", "Sqrt", "Exp", "Log", "Abs", "Neg", "Reciprocal", "Sign", "Min", "Round", "Floor"}
    | {"Sin", "Cos", "Tan", "Atan", "Sinh", "Erf"}
)
_OF_A_CONSTANT = {"Sub": "Neg", "Div": "Reciprocal"}
_ELEMENTWISE = _ACTIVATIONS | _SCALING | _CLAMPING | _NEUTRAL | _TRANSFORMS
_LINEAR = _SCALING | {"Neg"}
_SPELLED_OUT = (
    ("Exp", "Add", "Log"),
    ("Exp", "Add", "Reciprocal"),
    *(("Sigmoid", "Log", turn) for turn in ("Neg", "Mul")),
    ("Sigmoid", "Log"),
)
_MAKING_MAPS = frozenset({"Conv", "ConvTranspose"}) | _GLOBAL | _WINDOWS
_TO_LAST = (0, 2, 3, 1)
_TO_MAPS = frozenset({(0, 3, 1, 2), (0, 2, 1)})
_MAP_DIMENSIONS = 4
_TOKEN_DIMENSIONS = 3
_TURNED = (0, 2, 1)
_TO_THE_END = 2**31 - 1
_SHAPES = frozenset({"Shape", "Size"})
_MULTIPLYING = frozenset({"Mul", "MatMul", "Einsum", "Gemm", "Pow"})
_LISTED = 8


@dataclass(frozen=True, slots=True)
class MapEnd:
    """A value that may be a map, and what ends it; ``result`` is None where a user names the map.

    ``step`` is the number of the node that ends it. ``reduced`` are the axes that this one takes
    together, None where it is for maps (N, C, ...). ``tokens`` is which axis of a value of three
    holds channels, None where that is not known; ``is_last`` says that those of four stand last.
    """

    source: str
    result: str | None
    step: int = -1
    reduced: tuple[int, ...] | None = None
    tokens: int | None = None
    is_last: bool = False

    def channels(self, shapes: dict[str, tuple[int, ...]], images: int) -> int | None:
        """Which axis of the value holds channels; None where it is no map of a row an image.

        It has more than one position, and what ends it leaves none of these, or flattens all.
        """
        shape = shapes[self.source]
        axis = self._axis(len(shape))
        if axis is None or shape[0] != images or prod(shape[1:]) == shape[axis]:
            return None
        if self.result is None:
            return axis
        result = shapes[self.result]
        is_flat = self.reduced is None and len(shape) == _MAP_DIMENSIONS
        is_whole = prod(result[1:]) == shape[axis] or (is_flat and result[1:] == (prod(shape[1:]),))
        return axis if result[0] == images and is_whole else None

    def _axis(self, dimensions: int) -> int | None:
        if dimensions not in {_MAP_DIMENSIONS, _TOKEN_DIMENSIONS}:
            return None
        axis = 3 if self.is_last and dimensions == _MAP_DIMENSIONS else 1
        if self.reduced is not None:
            reduced = {axis % dimensions for axis in self.reduced}
            left = [one for one in range(1, dimensions) if one not in reduced]
            if len(left) != 1 or (left[0] == 2 and dimensions == _MAP_DIMENSIONS):  # noqa: PLR2004
                return None
            axis = left[0]
        elif self.result is None and dimensions == _TOKEN_DIMENSIONS:
            return self.tokens
        return axis if dimensions == _MAP_DIMENSIONS or axis == self.tokens else None


@dataclass(frozen=True, slots=True)
class Flow:
    """The nodes between the images and the logits: kind, inputs and outputs of each."""

    images: str
    logits: str
    steps: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]

    def cut(self, stops: Collection[int]) -> list[int] | None:
        """The last of some nodes on all ways from the images to the logits, in order.

        None where there is a way around them, or where there are several and what comes of them is
        multiplied, so that one may be the gate of another. A tensor's shape is no way.
        """
        makers = {name: step for step, (_, _, made) in enumerate(self.steps) for name in made}
        found: set[int] = set()
        waiting, seen, is_product = [self.logits], {self.logits}, False
        while waiting:
            name = waiting.pop()
            if name == self.images:
                return None
            step = makers.get(name)
            if step is None or self.steps[step][0] in _SHAPES:
                continue
            if step in stops:
                found.add(step)
                continue
            kind, inputs, _ = self.steps[step]
            moving = [one for one in inputs if one in makers or one == self.images]
            is_product |= kind in _MULTIPLYING and len(moving) > 1
            waiting += [one for one in moving if one not in seen]
            seen.update(moving)
        return None if not found or (len(found) > 1 and is_product) else sorted(found)


@dataclass(frozen=True, slots=True)
class Head:
    """The last linear layer: the name of its input, its weight (K, D) and bias (K,)."""

    features: str
    weight: Any
    bias: Any

    def linear(self) -> nn.Linear:
        """The same as a module of torch."""
        classes, width = self.weight.shape
        linear = nn.Linear(width, classes)
        weight, bias = (np.array(one, np.float32) for one in (self.weight, self.bias))
        linear.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        linear.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
        return linear


class Graph:
    """What can be asked of the nodes of an ONNX graph between the images and the logits."""

    def __init__(
        self, nodes: Sequence[Any], images: str, logits: str, tensors: dict[str, Any]
    ) -> None:
        self._nodes = [node for node in nodes if node.output[0] not in tensors]
        self._images, self._logits = images, logits
        self._tensors = tensors
        self._makers = {name: node for node in self._nodes for name in node.output}

    def head(self) -> Head | None:
        """The linear layer whose output is the logits."""
        node = self._makers.get(self._logits)
        if node is not None and node.op_type == "Gemm":
            return self._of_gemm(node)
        if node is not None and node.op_type == "Add":
            for product, bias in (node.input, reversed(node.input)):
                inner = self._makers.get(product)
                if bias in self._tensors and inner is not None and inner.op_type == "MatMul":
                    return self._of_product(inner, self._tensors[bias])
        if node is not None and node.op_type == "MatMul":
            return self._of_product(node, None)
        return None

    def map_ends(self) -> Iterator[MapEnd]:
        """What may end a map by its kind, in order."""
        for step, node in enumerate(self._nodes):
            if node.op_type in _POOLINGS | _FLATTENING:
                source = self._before_transforms(node.input[0])
                reduced = self._axes(node) if node.op_type in _REDUCTIONS else None
                yield MapEnd(source, node.output[0], step, reduced, self._tokens(source))

    def named(self, name: str) -> MapEnd:
        """The map that a user names.

        Raises:
            FeatureMapError: There is no such value, or it is not known how it lies.
        """
        self.require(name)
        return MapEnd(name, None, tokens=self._tokens(name), is_last=self.is_last(name))

    def flow(self) -> Flow:
        """The graph without its tensors."""
        steps = ((one.op_type, tuple(one.input), tuple(one.output)) for one in self._nodes)
        return Flow(self._images, self._logits, tuple(steps))

    def _tokens(self, name: str) -> int | None:
        """Which axis of a value (N, tokens, C) or (N, C, tokens) holds channels, by what made it.

        A layer normalisation or a dense layer is over channels; after a transpose of their result
        these stand first.
        """
        is_turned = False
        while (node := self._makers.get(name)) is not None and node.op_type == "Transpose":
            order = tuple(*(one.ints for one in node.attribute if one.name == "perm"))
            if order != _TURNED:
                return None
            is_turned, name = not is_turned, node.input[0]
        found = self._before_turning(name)
        return found if found is None or not is_turned else _TOKEN_DIMENSIONS - found

    def _before_turning(self, name: str) -> int | None:
        node = self._makers.get(name)
        if node is None:
            return None
        weight = self._tensors.get(node.input[1]) if len(node.input) > 1 else None
        is_dense = node.op_type == "MatMul" and weight is not None and weight.ndim == 2  # noqa: PLR2004  a matrix
        if is_dense or node.op_type == "LayerNormalization":
            return 2
        if node.op_type in _FLATTENING:
            before = self._makers.get(node.input[0])
            return 1 if before is not None and self._is_of_maps(before) else None
        if node.op_type not in _ELEMENTWISE and not self._cuts_front_off(node):
            return None
        found = {self._before_turning(one) for one in node.input if one in self._makers} - {None}
        return found.pop() if len(found) == 1 else None

    def _is_of_maps(self, node: Any) -> bool:
        while node.op_type in _ELEMENTWISE or node.op_type == "BatchNormalization":
            before = next((one for one in node.input if one in self._makers), None)
            if before is None:
                return False
            node = self._makers[before]
        return node.op_type in _MAKING_MAPS

    def _cuts_front_off(self, node: Any) -> bool:
        """Whether a node leaves the first tokens out: the learned ones, as no others are there."""
        if node.op_type != "Slice" or len(node.input) < 3:  # noqa: PLR2004  the third is the end
            return False
        end = self._tensors.get(node.input[2])
        return end is not None and bool((np.asarray(end) >= _TO_THE_END).all())

    def _before_transforms(self, name: str) -> str:
        """The activations before the powers of a generalised mean and the like.

        See `nap_stream.model.ends` for which of the functions behind a layer is its activation.
        """
        last = name
        functions: list[tuple[str, str]] = []
        while (node := self._makers.get(name)) is not None and (found := self._function(node)):
            if found[0] not in _NEUTRAL:
                functions.insert(0, found)
            name = found[1]
        while functions and functions[0][0] in _LINEAR:
            functions.pop(0)
        kinds = tuple(kind for kind, _ in functions)
        is_clamp = set(kinds[:2]) <= _CLAMPING
        if spelled := next((part for part in _SPELLED_OUT if kinds[: len(part)] == part), ()):
            functions = functions[len(spelled) :]
        elif kinds and (kinds[0] in _ACTIVATIONS or is_clamp):
            functions.pop(0)
        return functions[0][1] if functions else last

    def _function(self, node: Any) -> tuple[str, str] | None:
        """The kind of an element-wise function of one value, and this value; None for others.

        What it divides is as its reciprocal, what it is taken from as its negative, its product
        with itself as a power.
        """
        if node.op_type not in _ELEMENTWISE:
            return None
        values = [one for one in node.input if one and not self._is_number(one)]
        if not values or (len(set(values)) > 1 and node.op_type != "PRelu"):
            return None
        kind = node.op_type
        if node.input[0] != values[0]:
            kind = _OF_A_CONSTANT.get(kind, kind)
        elif kind == "Mul" and len(values) > 1:
            kind = "Pow"
        return kind, values[0]

    def _is_number(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name].size == 1

    def require(self, name: str) -> None:
        """Refuse a name that is no value's.

        Raises:
            FeatureMapError: There is none.
        """
        if name not in self._makers:
            raise FeatureMapError(
                f"the graph has no value of this name; the last are: {', '.join(self.listed())}",
                f"model.feature_layer = {name!r}",
                "Name a value of the graph that is a map (N, C, H, W)",
            )

    def is_last(self, name: str) -> bool:
        """Whether the channels of a map that a user names stand last, by the transposes before it.

        Raises:
            FeatureMapError: It stands behind another transpose, as heads, tokens and windows do.
        """
        inside: str | None = name
        while inside is not None and (node := self._makers.get(inside)) is not None:
            if node.op_type in _MAKING_MAPS:
                return False
            if node.op_type == "Transpose":
                order = tuple(*(one.ints for one in node.attribute if one.name == "perm"))
                if order in _TO_MAPS | {_TO_LAST}:
                    return order == _TO_LAST
                raise FeatureMapError(
                    f"the value stands behind a transpose {order}, so that it is not known which "
                    "of its axes are channels",
                    f"model.feature_layer = {name!r}",
                    "Name a value of the graph that is a map (N, C, H, W)",
                )
            inside = next((one for one in node.input if one not in self._tensors), None)
        return False

    def listed(self) -> list[str]:
        """The last values of the graph."""
        return [name for node in self._nodes for name in node.output][-_LISTED:]

    def _axes(self, node: Any) -> tuple[int, ...]:
        given = [list(one.ints) for one in node.attribute if one.name == "axes"]
        if not given and len(node.input) > 1 and node.input[1] in self._tensors:
            given = [self._tensors[node.input[1]].tolist()]
        return tuple(given[0]) if given else ()

    def _of_gemm(self, node: Any) -> Head | None:
        options = {one.name: one.f if one.type == 1 else one.i for one in node.attribute}
        weight = self._tensors.get(node.input[1])
        is_plain = options.get("alpha", 1) == options.get("beta", 1) == 1
        if weight is None or options.get("transA", 0) or not is_plain:
            return None
        weight = weight if options.get("transB", 0) else weight.T
        bias = self._tensors.get(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))  # noqa: PLR2004  the bias is the third
        is_vector = bias is not None and bias.shape == (len(weight),)
        return Head(node.input[0], weight, bias) if is_vector else None

    def _of_product(self, node: Any, bias: Any) -> Head | None:
        weight = self._tensors.get(node.input[1])
        if weight is None or weight.ndim != 2:  # noqa: PLR2004  a matrix
            return None
        bias = np.zeros(weight.shape[1]) if bias is None else bias
        return Head(node.input[0], weight.T, bias) if bias.shape == weight.shape[1:] else None
