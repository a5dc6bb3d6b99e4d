"""Noting what a model does with its maps while it runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.model.cls_token import attention_site
from nap_stream.model.feature_site import FeatureSite, FunctionCall
from nap_stream.model.head import LinearCall
from nap_stream.model.map_calls import (
    ADAPTIVE_POOLINGS,
    flattens,
    keeps_channels_second,
    pools_globally,
    shape_of,
)
from nap_stream.model.watching import first_argument, is_floating, is_image_like, is_map

_POOLING_MODULES = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
)


def _is_later_map(value: torch.Tensor) -> bool:
    """Whether a map goes on: a pooled vector with its channels last, (N, 1, 1, C), does not."""
    return is_map(value) and sum(side > 1 for side in value.shape[1:]) > 1


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor, and the site at which its map is read."""

    tensor: torch.Tensor
    site: FeatureSite


class Recorder(TorchFunctionMode):
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
        if keeps_channels_second(name, args, result, self._features):
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
        if _is_later_map(result):
            self.end = self._flat = None
        if is_image_like(source):
            if pools_globally(call.function, source, args, kwargs, result):
                site = self._site(call, source)
                self.poolings.append(site)
                self.end = site if is_map(source) else self.end
            elif call.function in ADAPTIVE_POOLINGS:
                self._adapted = _Placed(result, self._site(call, source))
            elif source is self._features and flattens(call.function, source, result):
                self._flat = _Placed(result, self._flattened(call, source))
        elif self._flat is not None and source is self._flat.tensor:
            if call.function == "linear":
                self.end = self._flat.site
            elif result.shape == source.shape:
                self._flat = replace(self._flat, tensor=result)

    def _note_linear(self, source: torch.Tensor, call: FunctionCall, result: torch.Tensor) -> None:
        module = self._running[-1]
        if call.function == "linear" and isinstance(module, nn.Linear):
            own = self._module_calls[module] - 1
            name = self._names[module]
            self.linears.append(LinearCall(module, name, own, call.call, source.clone(), result))

    def _site(self, call: FunctionCall, source: torch.Tensor) -> FeatureSite:
        module = self._running[-1]
        name, shape = self._names[module], shape_of(source)
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
            self.maps.append(FeatureSite(kind, name, None, call, shape_of(value)))
