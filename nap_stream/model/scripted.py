"""TorchScript archives, as modules that can be watched.

Scripted modules take no hooks. Their graph is followed step by step in Python, by the same
operators, under the same names of weights and with linear layers as ``nn.Linear``: what finds the
map and the head then sees what it sees of any other model.
"""

import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nap_stream.errors import ModelError
from nap_stream.model.exported import QUANTISED, linear_of
from nap_stream.text import described

_SELF = ""
_native_attention: Any = torch.ops.aten._native_multi_head_attention  # noqa: SLF001  its only name
Values = dict[str, Any]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any("/code/" in name for name in names) and any(
        name.endswith("/constants.pkl") for name in names
    )


def load_torchscript(path: Path) -> nn.Module:
    """Read a TorchScript archive, and make a module of it that can be watched.

    Raises:
        ModelError: It cannot be read, is quantised, or calls what cannot be called from Python.
    """
    where = f"model.weights = {path}"
    try:
        jit: Any = torch.jit
        scripted = jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise ModelError(
            f"the TorchScript archive cannot be read ({described(error)})", where
        ) from error
    return watchable(scripted, where)


def watchable(scripted: Any, where: str) -> "ScriptedModel":
    """Make a module of a scripted or traced one, a torch.jit.ScriptModule, in evaluation mode.

    Raises:
        ModelError: It is quantised, or calls what cannot be called from Python.
    """
    scripted.eval()
    graph = scripted.inlined_graph
    quantised = [node.kind() for node in _every_node(graph) if "quantized" in node.kind()]
    if quantised:
        raise ModelError(f"the module is quantised ({quantised[0]})", where, QUANTISED)
    model = ScriptedModel()
    _copy_parts(scripted, model)
    try:
        model.follow(graph, scripted)
    except _UnknownCallError as error:
        raise ModelError(
            f"the TorchScript module calls {error}, which cannot be called from Python",
            where,
            "Name the callable that builds the model in model.factory, and give its state dict",
        ) from error
    return model


class _UnknownCallError(Exception):
    """A node of a graph that is no plain call."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One call: the names of what goes in and comes out, and what to do."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[nn.Module, Values, tuple[Any, ...]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _Block:
    """Steps in order. It is never changed, and so never copied."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[_Step, ...]

    def __deepcopy__(self, _memo: object) -> "_Block":
        return self

    def __call__(self, model: nn.Module, values: Values, given: Sequence[Any]) -> tuple[Any, ...]:
        values.update(zip(self.inputs, given, strict=True))
        for step in self.steps:
            found = step.run(model, values, tuple(values[name] for name in step.inputs))
            values.update(zip(step.outputs, found, strict=True))
        return tuple(values[name] for name in self.outputs)


class ScriptedModel(nn.Module):
    """Follows a scripted module's graph. Names of weights and parts are those of that module."""

    def __init__(self) -> None:
        super().__init__()
        self._block: _Block | None = None
        self._given: tuple[Any, ...] = ()

    def follow(self, graph: Any, scripted: Any) -> None:
        """Take over a graph.

        Raises:
            _UnknownCallError: One of its nodes is no plain call.
        """
        maker = _Maker(self, scripted)
        own, *inputs = graph.inputs()
        maker.modules[own.debugName()] = _SELF
        defaults = [argument.default_value for argument in scripted.forward.schema.arguments[2:]]
        self._given = tuple(defaults)
        self._block = maker.block(graph, inputs)

    def forward(self, images: torch.Tensor) -> Any:
        """Call the graph on images (N, 3, H, W); its other arguments have their defaults."""
        assert self._block is not None
        outputs = self._block(self, {}, (images, *self._given))
        return outputs[0] if len(outputs) == 1 else outputs


class _Maker:
    """Makes steps of nodes. ``modules`` are the names of values that are parts of the module."""

    def __init__(self, model: nn.Module, scripted: Any) -> None:
        self._model, self._scripted = model, scripted
        self.modules: dict[str, str] = {}
        self._tensors: dict[str, str] = {}
        self._constants: Values = {}

    def block(self, graph: Any, inputs: Sequence[Any]) -> _Block:
        steps = tuple(step for node in graph.nodes() if (step := self._step(node)) is not None)
        return _Block(_names(inputs), _names(graph.outputs()), steps)

    def _step(self, node: Any) -> _Step | None:
        kind, inputs, outputs = node.kind(), _names(node.inputs()), _names(node.outputs())
        if kind == "prim::GetAttr":
            return self._attribute(node)
        if kind == "prim::Constant":
            return self._constant(node)
        if kind == "aten::linear" and (owner := self._linear(inputs)) is not None:
            return _Step(inputs[:1], outputs, _call_module(owner))
        blocks = [self.block(block, list(block.inputs())) for block in node.blocks()]
        if kind == "prim::If":
            run = _branch(*blocks)
        elif kind == "prim::Loop":
            run = _loop(*blocks)
        elif kind in _PLAIN_CALLS:
            run = _plain(_PLAIN_CALLS[kind], len(outputs))
        else:
            run = _operator(node, len(outputs))
        return _Step(inputs, outputs, run)

    def _attribute(self, node: Any) -> _Step | None:
        (owner,), (output,) = node.inputs(), node.outputs()
        path = ".".join(filter(None, (self.modules[owner.debugName()], node.s("name"))))
        value = operator.attrgetter(path)(self._scripted)
        if isinstance(value, torch.jit.ScriptModule):
            self.modules[output.debugName()] = path
            return None
        if isinstance(value, torch.Tensor):
            if not _has(self._model, path):
                path = self._kept(value)
            self._tensors[output.debugName()] = path
            return _Step((), (output.debugName(),), _tensor(path))
        return _Step((), (output.debugName(),), _value(value))

    def _constant(self, node: Any) -> _Step:
        (output,) = node.outputs()
        value = output.toIValue()
        if isinstance(value, torch.Tensor):
            return _Step((), (output.debugName(),), _tensor(self._kept(value)))
        self._constants[output.debugName()] = value
        return _Step((), (output.debugName(),), _value(value))

    def _kept(self, value: torch.Tensor) -> str:
        """A buffer for a tensor that is no part of the state dict, so that it counts and moves."""
        buffers = self._model.named_buffers(recurse=False)
        name = f"constant_{sum(key.startswith('constant_') for key, _ in buffers)}"
        self._model.register_buffer(name, value.detach())
        return name

    def _linear(self, inputs: tuple[str, ...]) -> str | None:
        """The part whose weight and bias a call of ``linear`` takes; it becomes an nn.Linear."""
        _, weight, bias = inputs
        owner, _, name = self._tensors.get(weight, "").rpartition(".")
        has_bias = self._tensors.get(bias) == f"{owner}.bias"
        has_none = bias in self._constants and self._constants[bias] is None
        if not owner or name != "weight" or not (has_bias or has_none):
            return None
        held = self._model.get_submodule(owner)
        if not isinstance(held, nn.Linear):
            self._model.set_submodule(owner, linear_of(held))
        return owner


def _copy_parts(scripted: Any, into: nn.Module) -> None:
    """Give a module the parameters, buffers and parts of a scripted one, under their names."""
    for name, parameter in scripted.named_parameters(recurse=False):
        into.register_parameter(name, nn.Parameter(parameter.detach(), requires_grad=False))
    for name, buffer in scripted.named_buffers(recurse=False):
        into.register_buffer(name, buffer.detach())
    for name, part in scripted.named_children():
        into.add_module(name, nn.Module())
        _copy_parts(part, into.get_submodule(name))


def _names(values: Any) -> tuple[str, ...]:
    return tuple(value.debugName() for value in values)


def _has(model: nn.Module, path: str) -> bool:
    try:
        operator.attrgetter(path)(model)
    except AttributeError:
        return False
    return True


def _every_node(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _every_node(inner)


def _tensor(path: str) -> Any:
    get = operator.attrgetter(path)
    return lambda model, _values, _given: (get(model),)


def _value(value: Any) -> Any:
    return lambda _model, _values, _given: (value,)


def _plain(call: Callable[..., Any], outputs: int) -> Any:
    if outputs == 1:
        return lambda _model, _values, given: (call(*given),)
    return lambda _model, _values, given: call(*given) if outputs else ()


def _call_module(owner: str) -> Any:
    get = operator.attrgetter(owner)
    return lambda model, _values, given: (get(model)(*given),)


def _branch(yes: _Block, no: _Block) -> Any:
    return lambda model, values, given: (yes if given[0] else no)(model, values, ())


def _loop(body: _Block) -> Any:
    def run(model: nn.Module, values: Values, given: tuple[Any, ...]) -> tuple[Any, ...]:
        trips, goes_on, *carried = given
        trip = 0
        while goes_on and trip < trips:
            goes_on, *carried = body(model, values, (trip, *carried))
            trip += 1
        return tuple(carried)

    return run


def _operator(node: Any, outputs: int) -> Any:
    """A call of a torch operator, with the arguments that it takes by name alone."""
    namespace, _, name = node.kind().partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace != "prim" else None
    schema = node.schema()
    if packet is None or schema == "(no schema)":
        raise _UnknownCallError(node.kind())
    arguments = torch._C.parse_schema(schema).arguments  # noqa: SLF001  the only reader of schemas
    by_name = {place: one.name for place, one in enumerate(arguments) if one.kwarg_only}
    scalar = _OF_SCALARS.get(name)

    def run(_model: nn.Module, _values: Values, given: tuple[Any, ...]) -> Sequence[Any]:
        if scalar is not None and not any(isinstance(one, torch.Tensor) for one in given):
            return (scalar(*given),)
        positional = [one for place, one in enumerate(given) if place not in by_name]
        named = {name: given[place] for place, name in by_name.items()}
        found = packet(*positional, **named)
        return (found,) if outputs == 1 else found if outputs else ()

    return run


def _convolution(*given: Any) -> torch.Tensor:
    """What a traced convolution calls, by the name of the function that it was."""
    source, weight, bias, stride, padding, dilation, transposed, output_padding, groups = given[:9]
    sides = source.ndim - 2
    if transposed:
        up = getattr(torch.ops.aten, f"conv_transpose{sides}d")
        found = up(source, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        down = getattr(torch.ops.aten, f"conv{sides}d")
        found = down(source, weight, bias, stride, padding, dilation, groups)
    assert isinstance(found, torch.Tensor)
    return found


def _attention(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a scripted nn.MultiheadAttention calls, as functions that show the attention.

    Self-attention without a mask; its other forms are called as they are.
    """
    query, key, value, width, heads, weight, bias, out_weight, out_bias, mask, need_weights = given[
        :11
    ]
    if query is not key or key is not value or mask is not None or need_weights:
        found: tuple[torch.Tensor, torch.Tensor] = _native_attention(*given)
        return found
    images, tokens, _ = query.shape
    packed = functional.linear(query, weight, bias)
    parts = packed.reshape(images, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    asking, asked, taken = parts.unbind(0)
    mixed = functional.scaled_dot_product_attention(asking, asked, taken)
    mixed = mixed.transpose(1, 2).flatten(2)
    return functional.linear(mixed, out_weight, out_bias), query.new_empty(0)


def _refuse(*given: Any) -> None:
    raise RuntimeError(str(given[0]) if given else "the TorchScript module raised")


def _size(source: torch.Tensor, side: int | None = None) -> Any:
    return list(source.size()) if side is None else source.size(side)


def _dictionary(*given: Any) -> dict[Any, Any]:
    return dict(zip(given[::2], given[1::2], strict=True))


_PLAIN_CALLS: Mapping[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *given: list(given),
    "prim::TupleConstruct": lambda *given: tuple(given),
    "prim::DictConstruct": _dictionary,
    "prim::ListUnpack": tuple,
    "prim::TupleUnpack": tuple,
    "prim::TupleIndex": operator.getitem,
    "prim::NumToTensor": torch.tensor,
    "prim::unchecked_cast": lambda given: given,
    "prim::unchecked_unwrap_optional": lambda given: given,
    **{
        f"prim::{name}": operator.attrgetter(name)
        for name in ("requires_grad", "type", "dtype", "device", "is_nested", "is_cuda")
    },
    "prim::Uninitialized": lambda: None,
    "prim::RaiseException": _refuse,
    "prim::Print": lambda *_: None,
    "prim::min": min,
    "prim::max": max,
    "aten::warn": lambda *_: None,
    "aten::_unwrap_optional": lambda given: given,
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": lambda given: given.item(),
    "aten::format": lambda text, *given: text.format(*given),
    "aten::len": len,
    "aten::dim": lambda given: given.dim(),
    "aten::size": _size,
    "aten::list": list,
    "aten::append": lambda given, one: given.append(one) or given,
    "aten::__getitem__": operator.getitem,
    "aten::__not__": operator.not_,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__contains__": operator.contains,
    "aten::__range_length": lambda low, high, step: len(range(low, high, step)),
    "aten::__derive_index": lambda index, start, step: start + index * step,
    "aten::_convolution": _convolution,
    "aten::_native_multi_head_attention": _attention,
}
_OF_SCALARS: Mapping[str, Callable[..., Any]] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "neg", "eq", "ne", "lt", "le", "gt", "ge")
    },
    "div": operator.truediv,
    "remainder": operator.mod,
    "__and__": lambda one, other: one and other,
    "__or__": lambda one, other: one or other,
}
