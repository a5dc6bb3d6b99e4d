"""Finding where the prior is read and which head ends the model, by one probing forward pass.

The pass notes what pools, flattens and attends where. The place is chosen from what it showed, and
never guessed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.errors import FeatureMapError
from nap_stream.model.sites import (
    FeatureSite,
    FunctionCall,
    HeadSite,
    LinearCall,
    attention_site,
    cls_alone_decides,
    find_head,
    first_argument,
    is_floating,
    is_image_like,
    is_map,
    plain_name,
    run_eagerly,
    unwrapped,
)

_ADAPTIVE_POOLINGS = frozenset({"adaptive_avg_pool2d", "adaptive_max_pool2d"})
_POOLING_FUNCTIONS = _ADAPTIVE_POOLINGS | {"avg_pool2d", "max_pool2d", "mean", "amax"}

_SPATIAL_DIMENSIONS = {2, 3}
_FLATTENING = frozenset({"flatten", "reshape", "view"})
_CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_REORDERING = (
    _FLATTENING
    | {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
    | {"unflatten", "view_as", "reshape_as"}
)
_POOLING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_LISTED_CANDIDATES = 8
_ADVICE = "Name a module in model.feature_layer"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one forward pass showed.

    ``end`` is where the last map goes into a global pooling, or is flattened into a linear
    function, with no other map of more than one position after it; None where there is no such
    place. ``poolings`` are the inputs of all global poolings in order. ``maps`` are the inputs
    and outputs of modules that are maps of more than one position, in order. ``attentions`` are
    the self-attentions whose CLS row can be read; ``cls_alone_decides`` says that of the last
    one's output the first token alone reaches the model's output. ``head`` is the linear module
    whose output is the model's.
    """

    output: Any
    end: FeatureSite | None
    poolings: tuple[FeatureSite, ...]
    maps: tuple[FeatureSite, ...]
    attentions: tuple[FeatureSite, ...]
    cls_alone_decides: bool
    head: HeadSite | None
    modules: tuple[str, ...]


def probe(model: nn.Module, batch: torch.Tensor) -> Probe:
    """Run the model on a batch (N, 3, H, W) and note its pooling calls, maps and head.

    A compiled model is run without compilation. Where there is attention and no last map, three
    more passes tell whether the CLS token alone decides.
    """
    plain = unwrapped(model)
    names = {module: plain_name(name) for name, module in plain.named_modules()}
    recorder = _Recorder(names)
    with torch.inference_mode(), run_eagerly(model):
        with ExitStack() as hooks, recorder:
            for module in names:
                before = module.register_forward_pre_hook(recorder.entered, with_kwargs=True)
                hooks.enter_context(before)
                hooks.enter_context(module.register_forward_hook(recorder.left))
            output = plain(batch)
        last = recorder.attentions[-1] if recorder.attentions and recorder.end is None else None
        head = find_head(recorder.linears, output)
        return Probe(
            output=output,
            end=recorder.end,
            poolings=tuple(recorder.poolings),
            maps=tuple(recorder.maps),
            attentions=tuple(recorder.attentions),
            cls_alone_decides=last is not None and cls_alone_decides(plain, last, head, batch),
            head=head,
            modules=tuple(name for name in names.values() if name),
        )


def choose_site(seen: Probe, feature_layer: str | None) -> FeatureSite:
    """Choose where the Neural Activation Prior is read, or take what the user names.

    The choice is the map that enters the last global pooling; without one, the last map that is
    flattened into a linear module (VGG, AlexNet; arXiv 1409.1556); without one, the last block's
    CLS attention, if the CLS token alone reaches the output (ViT; arXiv 2010.11929).

    ``feature_layer`` is a module's dotted name: its output is the map, or its input where it
    pools, so that its output has no positions left. Of an ``nn.MultiheadAttention`` its CLS
    attention is read.

    Raises:
        FeatureMapError: There is no such place; lists the candidates with their shapes.
    """
    if feature_layer is not None:
        return _named(seen, feature_layer)
    if seen.end is not None and seen.end.positions > 1:
        return seen.end
    last = seen.end or (seen.poolings[-1] if seen.poolings else None)
    if last is not None and last.positions == 1:
        raise FeatureMapError(
            f"the last map before the classifier has one position only ({last}): "
            "its maximum is its mean",
            "model.preprocessing.crop",
            "Use a larger input",
        )
    if seen.cls_alone_decides:
        return seen.attentions[-1]
    raise FeatureMapError(f"{_problem(seen)}; {_candidates(seen)}", "model.feature_layer", _ADVICE)


def _problem(seen: Probe) -> str:
    maps = [site for site in seen.poolings if site.positions > 1]
    if maps:
        return f"the last global pooling ({maps[-1]}) is not the end of the feature maps"
    if seen.attentions:
        return (
            f"more than the first token of the last self-attention ({seen.attentions[-1]}) reaches "
            "the output, so that there is no CLS token"
        )
    return (
        "the model has no global average or maximum pooling over a 4-D map, flattens no map of a "
        "convolution into a linear function, and has no self-attention that can be read"
    )


def _named(seen: Probe, layer: str) -> FeatureSite:
    where = f"model.feature_layer = {layer!r}"
    if layer not in seen.modules:
        close = get_close_matches(layer, seen.modules, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise FeatureMapError(f"the model has no module of this name{hint}", where, _ADVICE)
    own = [site for site in (*seen.attentions, *seen.maps) if site.module == layer]
    if not own:
        raise FeatureMapError(
            f"neither the output nor the input of this module is a floating-point map (N, C, H, W) "
            f"with more than one position; {_candidates(seen)}",
            where,
            _ADVICE,
        )
    return ([site for site in own if site.kind == "module_output"] or own)[-1]


def _candidates(seen: Probe) -> str:
    outputs = [site for site in seen.maps if site.kind == "module_output"]
    if not outputs:
        return "no module was seen to yield such a map"
    last = outputs[-_LISTED_CANDIDATES:]
    listed = ", ".join(f"{site.module} ({'x'.join(map(str, site.shape))})" for site in last)
    return f"the last maps are the outputs of: {listed}"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor, and the site at which its map is read."""

    tensor: torch.Tensor
    site: FeatureSite


class _Recorder(TorchFunctionMode):
    """Note pooling, flattening, attention and linear calls, and the maps between modules.

    Fields are as in `Probe`; ``linears`` are all calls of linear modules, in order. ``entered``
    and ``left`` must be hooked to every module of ``names`` while the mode is active.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.end: FeatureSite | None = None
        self.poolings: list[FeatureSite] = []
        self.maps: list[FeatureSite] = []
        self.attentions: list[FeatureSite] = []
        self.linears: list[LinearCall] = []
        self._names = names
        self._running: list[nn.Module] = []
        self._module_calls: Counter[nn.Module] = Counter()
        self._function_calls: Counter[tuple[str, int]] = Counter()
        self._untraced: dict[int, tuple[torch.Tensor, list[int]]] = {}
        self._features: torch.Tensor | None = None
        self._adapted: _Placed | None = None
        self._flat: _Placed | None = None

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a module was called; a forward pre-hook."""
        self._running.append(module)
        self._module_calls[module] += 1
        call = self._module_calls[module] - 1
        self._note_map("module_input", module, first_argument(args, kwargs))
        # A hook inside an nn.TransformerEncoderLayer would switch that layer's fast path off, and
        # with it the last bits of the output.
        is_layered = any(isinstance(part, nn.TransformerEncoderLayer) for part in self._running)
        if isinstance(module, nn.MultiheadAttention) and not is_layered:
            calls = call, self._function_calls["multi_head_attention_forward", 3]
            site = attention_site(module, self._names[module], calls, args, kwargs)
            self.attentions += [site] if site else []

    def left(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Note that a module has returned; a forward hook."""
        self._note_map("module_output", module, output)
        self._running.pop()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        source = first_argument(args, kwargs)
        if is_floating(source):
            call = FunctionCall(name, self._function_calls[name, source.ndim])
            self._function_calls[name, source.ndim] += 1
            if is_floating(result) and name != "__get__":
                self._note_end(call, source, args, kwargs, result)
                self._note_linear(source, call, result)
                self._trace(source, call)
        elif is_map(result):
            self.end = self._flat = None
        if _keeps_channels_second(name, args, result, self._features):
            self._features = result
        return result

    def _note_end(
        self,
        call: FunctionCall,
        source: torch.Tensor,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        result: torch.Tensor,
    ) -> None:
        # A pooled vector with its channels last, (N, 1, 1, C), is no later map.
        if is_map(result) and sum(side > 1 for side in result.shape[1:]) > 1:
            self.end = self._flat = None
        if is_image_like(source):
            if _pools_globally(call.function, source, args, kwargs, result):
                site = self._site(call, source)
                self.poolings.append(site)
                self.end = site if is_map(source) else self.end
            elif call.function in _ADAPTIVE_POOLINGS:
                self._adapted = _Placed(result, self._site(call, source))
            elif source is self._features and _flattens(call.function, source, result):
                self._flat = _Placed(result, self._flattened(call, source))
        elif self._flat is not None and source is self._flat.tensor:
            if call.function == "linear":
                self.end = self._flat.site
            elif result.shape == source.shape:
                self._flat = replace(self._flat, tensor=result)

    def _note_linear(self, source: torch.Tensor, call: FunctionCall, result: torch.Tensor) -> None:
        module = self._running[-1]
        if call.function == "linear" and isinstance(module, nn.Linear):
            name, own = self._names[module], self._module_calls[module] - 1
            site = HeadSite(name, (module.out_features, module.in_features), own, call.call)
            self.linears.append(LinearCall(module, site, source.clone(), result))

    def _site(self, call: FunctionCall, source: torch.Tensor) -> FeatureSite:
        module = self._running[-1]
        name, shape = self._names[module], _shape_of(source)
        if isinstance(module, _POOLING_MODULES):
            own = self._module_calls[module] - 1
            return FeatureSite("module_input", name, None, own, shape, call)
        return FeatureSite("function_input", name, call.function, call.call, shape, call)

    def _flattened(self, call: FunctionCall, source: torch.Tensor) -> FeatureSite:
        # What an adaptive pooling repeats to its fixed size is seen in its input alone.
        if self._adapted is not None and source is self._adapted.tensor:
            return self._adapted.site
        return self._site(call, source)

    def _trace(self, source: torch.Tensor, call: FunctionCall) -> None:
        _, indices = self._untraced.pop(id(source), (source, []))
        for index in indices:
            self.maps[index] = replace(self.maps[index], traced=call)

    def _note_map(
        self, kind: Literal["module_input", "module_output"], module: nn.Module, value: Any
    ) -> None:
        name = self._names[module]
        if name and is_map(value):
            call = self._module_calls[module] - 1
            # Holding the tensor keeps its id from being given to another.
            _, indices = self._untraced.setdefault(id(value), (value, []))
            indices.append(len(self.maps))
            self.maps.append(FeatureSite(kind, name, None, call, _shape_of(value)))


def _shape_of(value: torch.Tensor) -> tuple[int, int, int]:
    _, channels, height, width = value.shape
    return channels, height, width


def _pools_globally(
    function: str,
    source: torch.Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    result: Any,
) -> bool:
    """Whether a call reduced all positions of each channel, and nothing else, to one value."""
    if function not in _POOLING_FUNCTIONS:
        return False
    if not isinstance(result, torch.Tensor) or result.shape[:2] != source.shape[:2]:
        return False
    if result.numel() != source.shape[0] * source.shape[1]:
        return False
    if function not in {"mean", "amax"}:
        return True
    named = kwargs or {}
    reduced = args[1] if len(args) > 1 else named.get("dim", named.get("axis", ()))
    dimensions = reduced if isinstance(reduced, Sequence) else (reduced,)
    return {dimension % source.ndim for dimension in dimensions} == _SPATIAL_DIMENSIONS


def _flattens(function: str, source: torch.Tensor, result: Any) -> bool:
    """Whether a call laid each map of more than one position of a batch out as one vector."""
    images, *sides = source.shape
    return (
        function in _FLATTENING
        and is_map(source)
        and isinstance(result, torch.Tensor)
        and tuple(result.shape) == (images, torch.Size(sides).numel())
    )


def _keeps_channels_second(
    function: str, args: Sequence[Any], result: Any, known: torch.Tensor | None
) -> bool:
    """Whether the result is a map with its channels in dimension 1, made by a convolution.

    That is so of a convolution's result, and of what keeps the channels of ``known``, the last
    tensor of which it was so. Channels-last tensors (N, H, W, C) have four dimensions too, and
    pixels are no features.
    """
    if not is_image_like(result) or function in _REORDERING:
        return False
    if function in _CONVOLUTIONS:
        return True
    if known is None:
        return False
    # A concatenation adds channels; anything else may change height and width.
    parts, kept = (args[0], (0, 2, 3)) if function in _CONCATENATIONS else (args, (0, 1))
    is_taken = any(part is known for part in parts)
    return is_taken and all(result.shape[side] == known.shape[side] for side in kept)
