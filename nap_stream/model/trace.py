"""The way of the pixels to the logits: every call of a torch function, and what it works on.

One pass is noted as a graph. It holds no tensors.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.model.facts import FeatureSite, FunctionCall, HeadSite, MapLayout
from nap_stream.model.graph import (
    ACTIVATIONS,
    ATTENTIONS,
    PICKING,
    REDUCTIONS,
    Attention,
    Node,
    Trace,
)
from nap_stream.model.layout import (
    Layout,
    axis_of,
    follow,
    of_pixels,
    of_rows,
    plain,
    positions,
    role_of,
)
from nap_stream.model.layout import reduced_dims as reduced
from nap_stream.model.sites import (
    LinearCall,
    attention_site,
    first_argument,
    is_floating,
    plain_name,
)

_POOLING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_WEIGHTED = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "bmm", "einsum"}
    | {"addmm", "baddbmm", "multi_head_attention_forward"}
)
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm"})
_MULTIPLIED = frozenset({"mul", "imul", "multiply"})
_CURVED = ACTIVATIONS | ATTENTIONS | frozenset({"multi_head_attention_forward"})
_FEWEST_DIMENSIONS = 3
_MOST_DIMENSIONS = 5


@dataclass(frozen=True, slots=True)
class _Call:
    """A call under way: its first argument's site and node, and the nodes of all arguments."""

    name: str = ""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    reads: FeatureSite | None = None
    source: int | None = None
    parents: tuple[int, ...] = ()


def trace(model: nn.Module, batch: torch.Tensor) -> tuple[Any, Trace]:
    """Run a plain model on a batch (N, C, H, W); returns its output, and what was seen."""
    names = {module: plain_name(name) for name, module in model.named_modules()}
    recorder = _Recorder(names, batch)
    with ExitStack() as hooks, recorder:
        for module in names:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            before = module.register_forward_pre_hook(recorder.entered, with_kwargs=True)
            hooks.enter_context(before)
            hooks.enter_context(module.register_forward_hook(recorder.left))
        output = model(batch)
    seen = recorder.trace
    logits = next(_tensors((output,)), None)
    seen.end = None if logits is None else recorder.node_of(logits)
    return output, seen


class _Recorder(TorchFunctionMode):
    """Note every call. ``entered`` and ``left`` must be hooked to every module of ``names``."""

    def __init__(self, names: Mapping[nn.Module, str], batch: torch.Tensor) -> None:
        super().__init__()
        self.trace = Trace()
        self._names = names
        self._is_scripted = any(isinstance(part, torch.jit.ScriptModule) for part in names)
        self._own = {id(part) for module in names for part in _own_tensors(module)}
        self._images = len(batch)
        self._is_hook = False
        self._running: list[nn.Module] = []
        self._inputs: list[tuple[int, ...]] = []
        self._module_calls: Counter[nn.Module] = Counter()
        self._function_calls: Counter[tuple[str, int]] = Counter()
        self._untraced: dict[int, list[int]] = {}
        # Tensors are held weakly: the pass needs no more memory than without.
        self._nodes: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._storages: dict[int, int] = {}
        self._changed: dict[int, int] = {}
        pixels = of_pixels(batch.shape)
        first = Node("", None, None, (), tuple(batch.shape), pixels, True, False, False)
        self._add(batch, first)

    def node_of(self, value: Any) -> int | None:
        """The node of a tensor as it is now; None for a constant."""
        if not isinstance(value, torch.Tensor):
            return None
        reference, node = self._nodes.get(id(value), (None, None))
        storage = _storage_of(value)
        if reference is None or reference() is not value:
            # A tensor that was made out of sight may lie where a known one does.
            known = isinstance(value, nn.Parameter) or storage is None
            node = None if known else self._storages.get(storage or 0)
        changed = self._changed.get(storage or 0)
        if node is not None and changed is not None and changed > node:
            return changed
        return node

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a module was called; a forward pre-hook."""
        with self._unseen():
            self._enter(module, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        self._inputs.append(self._parents((args, kwargs)))
        self._module_calls[module] += 1
        call = self._module_calls[module] - 1
        self._note_map("module_input", module, first_argument(args, kwargs))
        # A hook inside an nn.TransformerEncoderLayer would switch that layer's fast path off, and
        # with it the last bits of the output.
        is_layered = any(isinstance(part, nn.TransformerEncoderLayer) for part in self._running)
        if isinstance(module, nn.MultiheadAttention) and not is_layered:
            calls = call, self._function_calls["multi_head_attention_forward", 3]
            site = attention_site(module, self._names[module], calls, args, kwargs)
            if site is not None:
                tokens = site.shape[2] + 1
                last = len(self.trace.nodes)
                self.trace.attentions.append(Attention(site, last, tokens, tokens))

    def left(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Note that a module has returned; a forward hook."""
        with self._unseen():
            self._leave(module, output)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """What a hook itself calls is no part of the pass."""
        self._is_hook = True
        try:
            yield
        finally:
            self._is_hook = False

    def _leave(self, module: nn.Module, output: Any) -> None:
        inputs = self._inputs.pop()
        for value in _tensors((output,)):
            if self.node_of(value) is None and inputs:
                # Scripted modules and extensions call what no mode sees.
                self._note_result(_Call(source=inputs[0], parents=inputs), value)
        self._note_map("module_output", module, output)
        self._running.pop()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if self._is_hook:
            return func(*args, **named)
        name = str(getattr(func, "__name__", ""))
        parents = self._parents((args, named))
        source = first_argument(args, kwargs)
        index = self.node_of(source)
        result = func(*args, **named)
        reads = None
        if is_floating(source):
            call = FunctionCall(name, self._function_calls[name, source.ndim])
            self._function_calls[name, source.ndim] += 1
            reads = self._site(call, source)
            if is_floating(result) and name != "__get__":
                self._trace(index, call)
                self._note_linear(source, call, result)
        if name in ATTENTIONS and is_floating(source) and reads is not None:
            self._note_attention(name, args, named, reads)
        if name == "__get__":
            name = str(getattr(getattr(func, "__self__", None), "__name__", name))
            reads = None
        if parents:
            self._note_results(func, _Call(name, args, named, reads, index, parents), result)
        else:
            self._forget(result)
        return result

    def _note_results(self, func: Any, call: _Call, result: Any) -> None:
        name, args, kwargs = call.name, call.args, call.kwargs
        changed = kwargs.get("out", args[0] if _works_in_place(name, args, kwargs) else None)
        if isinstance(changed, torch.Tensor):
            node = self._note_result(call, changed)
            if (storage := _storage_of(changed)) is not None:
                # Other views of it have changed too.
                self._changed[storage] = node
            return
        taken: list[tuple[int, ...]] = []
        if plain(name) in PICKING and call.source is not None:
            taken = _taken(func, args, kwargs, self.trace.nodes[call.source].layout)
        for value, part in zip_longest(_tensors((result,)), taken, fillvalue=()):
            if isinstance(value, torch.Tensor):
                self._note_result(call, value, tuple(part))

    def _note_result(self, call: _Call, value: torch.Tensor, taken: tuple[int, ...] = ()) -> int:
        bare, args, kwargs = plain(call.name), call.args, call.kwargs
        if bare in _MULTIPLIED and len(args) > 1 and args[0] is args[1]:
            bare = "square"
        before = [self.trace.nodes[index] for index in call.parents]
        constants = [part for part in _tensors((args, kwargs)) if self.node_of(part) is None]
        weighted = bare in _WEIGHTED and any(part.ndim > 1 for part in constants)
        if bare == "setitem":
            layout = self._layout(args[0])
        else:
            layout = follow(bare, args, kwargs, value, self._layout)
        if layout is not None and weighted and not any(node.learned for node in before):
            # What takes pixels apart into rows before the first layer makes tiles of them.
            layout = of_rows(layout)
        has = positions(layout) > 1 if layout is not None else not _is_vector(value)
        node = Node(
            name=bare,
            reads=call.reads,
            source=call.source,
            parents=call.parents,
            shape=tuple(value.shape),
            layout=layout,
            positional=has and any(node.positional for node in before),
            learned=weighted or any(node.learned for node in before),
            activated=bare in _CURVED or any(node.activated for node in before),
            weighing=self._is_weighing(bare, layout, before),
            operands=len({id(part) for part in _tensors((args, kwargs)) if part.numel() > 1}),
            reduced=frozenset(_reduced(bare, args, kwargs)),
            taken=taken,
        )
        return self._add(value, node)

    def _is_weighing(self, name: str, layout: Layout | None, before: Sequence[Node]) -> bool:
        if name == "softmax":
            return True
        spread = [node for node in before if node.positional]
        if name in _PRODUCTS:
            # Of two tokens each: more positions than either has.
            known = [positions(node.layout) for node in before if node.layout is not None]
            return layout is not None and bool(known) and positions(layout) > max(known)
        return bool(spread) and all(node.weighing for node in spread)

    def _add(self, value: torch.Tensor, node: Node) -> int:
        index = len(self.trace.nodes)
        self.trace.nodes.append(node)
        self._nodes[id(value)] = weakref.ref(value), index
        if (storage := _storage_of(value)) is not None:
            self._storages[storage] = index
        return index

    def _forget(self, result: Any) -> None:
        """A constant may lie where a tensor of the pass was."""
        for value in _tensors((result,)):
            if self.node_of(value) is not None:
                storage = _storage_of(value) or 0
                self._nodes.pop(id(value), None)
                self._storages.pop(storage, None)
                self._changed.pop(storage, None)

    def _parents(self, values: Any) -> tuple[int, ...]:
        found = (self._known(value) for value in _tensors(values))
        return tuple(dict.fromkeys(index for index in found if index is not None))

    def _known(self, value: torch.Tensor) -> int | None:
        node = self.node_of(value)
        if node is not None or not self._is_scripted or not is_floating(value):
            return node
        if id(value) in self._own or value.shape[:1] != (self._images,):
            return None
        # No mode and no hook sees what a scripted part does with what was there last.
        last = len(self.trace.nodes) - 1
        seen = Node(
            name="scripted",
            reads=None,
            source=last,
            parents=(last,),
            shape=tuple(value.shape),
            layout=None,
            positional=not _is_vector(value),
            learned=True,
            activated=True,
        )
        return self._add(value, seen)

    def _layout(self, value: Any) -> Layout | None:
        index = self.node_of(value)
        if index is None:
            return None
        layout = self.trace.nodes[index].layout
        return layout if self.trace.nodes[index].shape == tuple(value.shape) else None

    def _note_linear(self, source: torch.Tensor, call: FunctionCall, result: Any) -> None:
        module = self._running[-1] if self._running else None
        if call.function == "linear" and isinstance(module, nn.Linear):
            name, own = self._names[module], self._module_calls[module] - 1
            site = HeadSite(name, (module.out_features, module.in_features), own, call.call)
            self.trace.linears.append(LinearCall(module, site, source.clone(), result))

    def _note_attention(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], reads: FeatureSite
    ) -> None:
        if not _FEWEST_DIMENSIONS <= reads.layout.dimensions < _MOST_DIMENSIONS:
            return
        given = dict(zip(("query", "key"), args, strict=False)) | dict(kwargs)
        if name == "softmax":
            logits = first_argument(args, kwargs)
            dim = given.get("dim", given.get("key"))
            if not isinstance(dim, int) or dim % logits.ndim != logits.ndim - 1:
                return
            shape, heads, keys = tuple(logits.shape), logits.shape[1], logits.shape[-1]
        else:
            query, key = given["query"], given["key"]
            if given.get("is_causal") or query.shape[:-2] != key.shape[:-2]:
                return
            shape, heads, keys = tuple(query.shape), query.shape[1], key.shape[-2]
        queries, axis = shape[-2], 1
        if len(shape) == _FEWEST_DIMENSIONS:
            if shape[0] == self._images and name == "softmax" and shape[1] != shape[2]:
                layout = self._layout(first_argument(args, kwargs))
                if layout is not None and role_of(layout[-1]) == "channels":
                    # Of clusters or classes, not of tokens.
                    return
                queries = 1
            elif shape[0] % self._images == 0:
                heads, axis = shape[0] // self._images, 0
        if keys < _FEWEST_DIMENSIONS or (axis == 1 and shape[0] != self._images):
            return
        site = replace(
            reads,
            kind="cls_attention",
            function=name,
            shape=(heads, 1, keys - 1),
            layout=MapLayout(len(shape), axis),
        )
        self.trace.attentions.append(Attention(site, len(self.trace.nodes), queries, keys))

    def _site(self, call: FunctionCall, source: torch.Tensor) -> FeatureSite:
        module = self._running[-1] if self._running else None
        name = self._names[module] if module is not None else ""
        site = FeatureSite("function_input", name, call.function, call.call, (0, 0, 0), call)
        if isinstance(module, _POOLING_MODULES):
            own = self._module_calls[module] - 1
            site = replace(site, kind="module_input", function=None, call=own)
        return replace(site, layout=MapLayout(source.ndim))

    def _trace(self, index: int | None, call: FunctionCall) -> None:
        for place in self._untraced.pop(index, []) if index is not None else []:
            site, node = self.trace.maps[place]
            self.trace.maps[place] = replace(site, traced=call), node

    def _note_map(
        self, kind: Literal["module_input", "module_output"], module: nn.Module, value: Any
    ) -> None:
        name = self._names[module]
        value = value[0] if isinstance(value, tuple | list) and value else value
        node = self.node_of(value)
        if name and node is not None and is_floating(value):
            if not _FEWEST_DIMENSIONS <= value.ndim <= _MOST_DIMENSIONS:
                return
            call = self._module_calls[module] - 1
            self._untraced.setdefault(node, []).append(len(self.trace.maps))
            layout = MapLayout(value.ndim)
            site = FeatureSite(kind, name, None, call, (0, 0, 0), None, layout)
            self.trace.maps.append((site, node))


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def _works_in_place(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if not args:
        return False
    asked = kwargs.get("inplace", plain(name) in ACTIVATIONS and any(arg is True for arg in args))
    return bool(asked) or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _storage_of(value: torch.Tensor) -> int | None:
    with suppress(RuntimeError, NotImplementedError):
        return value.untyped_storage().data_ptr() or None
    return None


def _is_vector(value: torch.Tensor) -> bool:
    return sum(side > 1 for side in value.shape[1:]) <= 1


def _reduced(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    source = first_argument(args, kwargs)
    if name not in REDUCTIONS or not isinstance(source, torch.Tensor):
        return set()
    with suppress(TypeError, ValueError):
        return reduced(args, kwargs, source.ndim)
    return set()


def _taken(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], layout: Layout | None
) -> list[tuple[int, ...]]:
    """Which tokens each result of a picking call holds: the same call on the tokens' numbers."""
    source = first_argument(args, kwargs)
    axis = None if layout is None else axis_of(layout, "positions")
    if layout is None and source.ndim == _FEWEST_DIMENSIONS:
        axis = 1
    if axis is None or not args:
        return []
    sides = [1] * source.ndim
    sides[axis] = source.shape[axis]
    numbers = torch.arange(source.shape[axis]).reshape(sides).expand(source.shape)
    with suppress(RuntimeError, TypeError, IndexError):
        picked = func(numbers, *args[1:], **kwargs)
        return [tuple(sorted(set(part.flatten().tolist()))) for part in _tensors((picked,))]
    return []
