"""Finding the pre-pooling feature map with one probing forward pass. It never guesses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nap_stream.errors import FeatureMapError
from nap_stream.model.feature_map import first_argument, is_image_like, is_map
from nap_stream.model.feature_site import FeatureSite

_POOLING_MODULES = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
)
_POOLING_FUNCTIONS = frozenset(
    {"adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "mean", "amax"}
)
_SPATIAL_DIMENSIONS = {2, 3}
_LISTED_CANDIDATES = 8
_ADVICE = "Name a module in model.feature_layer"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one forward pass showed.

    ``poolings`` are the inputs of all global poolings in order; ``is_last_map`` says that after
    the last one of a map with more than one position came no other such map. ``maps`` are the
    inputs and outputs of modules that are such maps, in order.
    """

    output: Any
    poolings: tuple[FeatureSite, ...]
    is_last_map: bool
    maps: tuple[FeatureSite, ...]
    modules: tuple[str, ...]


def probe(model: nn.Module, batch: torch.Tensor) -> Probe:
    """Run the model once on a batch (N, 3, H, W) and note its pooling calls and maps."""
    names = {module: name for name, module in model.named_modules()}
    recorder = _Recorder(names)
    with ExitStack() as hooks, torch.inference_mode(), recorder:
        for module in names:
            for handle in (
                module.register_forward_pre_hook(recorder.entered, with_kwargs=True),
                module.register_forward_hook(recorder.left),
            ):
                hooks.callback(handle.remove)
        output = model(batch)
    return Probe(
        output,
        tuple(recorder.poolings),
        recorder.is_last_map,
        tuple(recorder.maps),
        tuple(name for name in names.values() if name),
    )


def choose_site(seen: Probe, feature_layer: str | None) -> FeatureSite:
    """Choose the map that enters the last global pooling, or the one the user names.

    Args:
        seen: What the probing pass showed.
        feature_layer: A module's dotted name: its output is the map, or its input where it
            pools, so that its output has no positions left.

    Raises:
        FeatureMapError: There is no such map; lists the candidates with their shapes.
    """
    if feature_layer is not None:
        return _named(seen, feature_layer)
    maps = [site for site in seen.poolings if _positions(site) > 1]
    if maps and seen.is_last_map:
        return maps[-1]
    if seen.poolings and _positions(seen.poolings[-1]) == 1:
        raise FeatureMapError(
            f"the map before the global pooling has one position only ({seen.poolings[-1]}): "
            "its maximum is its mean",
            "model.preprocessing.crop",
            "Use a larger input",
        )
    problem = (
        f"the last global pooling ({maps[-1]}) is not the end of the feature maps"
        if maps
        else "the model has no global average or maximum pooling over a 4-D map"
    )
    raise FeatureMapError(f"{problem}; {_candidates(seen)}", "model.feature_layer", _ADVICE)


def _named(seen: Probe, layer: str) -> FeatureSite:
    where = f"model.feature_layer = {layer!r}"
    if layer not in seen.modules:
        close = get_close_matches(layer, seen.modules, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise FeatureMapError(f"the model has no module of this name{hint}", where, _ADVICE)
    own = [site for site in seen.maps if site.module == layer]
    outputs = [site for site in own if site.kind == "module_output"]
    if not own:
        raise FeatureMapError(
            f"neither the output nor the input of this module is a floating-point map (N, C, H, W) "
            f"with more than one position; {_candidates(seen)}",
            where,
            _ADVICE,
        )
    return (outputs or own)[-1]


def _positions(site: FeatureSite) -> int:
    return site.shape[1] * site.shape[2]


def _candidates(seen: Probe) -> str:
    outputs = [site for site in seen.maps if site.kind == "module_output"]
    if not outputs:
        return "no module was seen to yield such a map"
    listed = ", ".join(
        f"{site.module} ({'x'.join(map(str, site.shape))})"
        for site in outputs[-_LISTED_CANDIDATES:]
    )
    return f"the last maps are the outputs of: {listed}"


class _Recorder(TorchFunctionMode):
    """Note pooling calls, and the maps between modules, while a model runs."""

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.poolings: list[FeatureSite] = []
        self.maps: list[FeatureSite] = []
        self.is_last_map = True
        self._names = names
        self._running: list[nn.Module] = []
        self._module_calls: Counter[nn.Module] = Counter()
        self._function_calls: Counter[str] = Counter()

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        self._module_calls[module] += 1
        self._note_map("module_input", module, first_argument(args, kwargs))

    def left(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
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
        if name in _POOLING_FUNCTIONS and is_image_like(source):
            if _pools_globally(name, source, args, kwargs, result):
                self.poolings.append(self._pooling_site(name, source))
                self.is_last_map = self.is_last_map or is_map(source)
            self._function_calls[name] += 1
        if is_map(result):
            self.is_last_map = False
        return result

    def _pooling_site(self, function: str, source: torch.Tensor) -> FeatureSite:
        module = self._running[-1]
        shape = _shape(source)
        if isinstance(module, _POOLING_MODULES):
            call = self._module_calls[module] - 1
            return FeatureSite("module_input", self._names[module], None, call, shape)
        call = self._function_calls[function]
        return FeatureSite("function_input", self._names[module], function, call, shape)

    def _note_map(self, kind: Any, module: nn.Module, value: Any) -> None:
        name = self._names[module]
        if name and is_map(value):
            call = self._module_calls[module] - 1
            self.maps.append(FeatureSite(kind, name, None, call, _shape(value)))


def _pools_globally(
    function: str,
    source: torch.Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    result: Any,
) -> bool:
    """Whether a call reduced all positions of each channel, and nothing else, to one value."""
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


def _shape(value: torch.Tensor) -> tuple[int, int, int]:
    _, channels, height, width = value.shape
    return channels, height, width
