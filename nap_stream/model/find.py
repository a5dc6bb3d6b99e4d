"""Finding where the prior is read and which head ends the model.

One pass is traced. From the logits back, the first tensors with positions of the image are the
maps that the logits depend on, and the calls that take their positions together say how the
maps lie. What cannot be read so is refused, never guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from nap_stream.errors import FeatureMapError
from nap_stream.model.ends import (
    End,
    ends_of,
    is_attended_after,
    is_count,
    is_gate,
    is_lost,
    named_map,
    picked_tokens,
    poolings,
    shares_source,
    single_attention,
)
from nap_stream.model.facts import FeatureSite, HeadSite
from nap_stream.model.graph import Attention, Trace
from nap_stream.model.layout import positions
from nap_stream.model.measure import Measure
from nap_stream.model.sites import find_head, run_eagerly, unwrapped
from nap_stream.model.trace import trace

_LISTED_CANDIDATES = 8
_TRIED_CANDIDATES = 24
_TOKEN_DIMENSIONS = 3
_ADVICE = "Name a module in model.feature_layer"
_NONE = "no module was seen to yield a map that can be read"
_NO_MAP = "Wrap the model so that the map before its classifier leaves a module, and name that"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one forward pass showed.

    ``head`` is the linear module whose output is the model's. ``trace`` is the way to it,
    ``measure`` runs the model again, to check what was read off that.
    """

    output: Any
    head: HeadSite | None
    trace: Trace
    measure: Measure
    modules: tuple[str, ...]


def probe(model: nn.Module, batch: torch.Tensor) -> Probe:
    """Run the model on a batch (N, 3, H, W) and note the way from the pixels to its output.

    A compiled model is run without compilation.
    """
    inner = unwrapped(model)
    with torch.inference_mode(), run_eagerly(model):
        output, seen = trace(inner, batch)
        head = find_head(seen.linears, output)
    seen.linears.clear()
    measure = Measure(model, inner, batch, head)
    names = tuple(name for name, _ in inner.named_modules() if name)
    return Probe(output, head, seen, measure, names)


def choose_site(seen: Probe, feature_layer: str | None) -> FeatureSite:
    """Choose where the Neural Activation Prior is read, or take what the user names.

    The choice is the map that enters the last pooling on the way to the logits, however it lies,
    as it is before element-wise transforms (the powers of a generalised mean); of several maps
    with poolings of their own, all; where a map is flattened into a linear function, that map
    (VGG, AlexNet; arXiv 1409.1556); where class tokens are picked, their attention in the last
    block (ViT; arXiv 2010.11929).

    ``feature_layer`` is a module's dotted name: its output is the map, or its input where it
    pools, so that its output has no positions left. Of an ``nn.MultiheadAttention`` its CLS
    attention is read.

    Raises:
        FeatureMapError: There is no such place, or it is ambiguous; lists the candidates with
            their shapes.
    """
    if feature_layer is not None:
        return _named(seen, feature_layer)
    ends = ends_of(seen.trace)
    # Pixels are features where there are no others, and pooled ones alone.
    ends = [end for end in ends if end.learned] or [
        end if end.kind == "pooled" else replace(end, site=None) for end in ends
    ]
    if _is_map(seen.trace):
        raise _refusal(seen, _problem(seen, ends))
    ends = [
        replace(end, site=None) if is_attended_after(seen.trace, end.map) else end for end in ends
    ]
    ends = [end for end in ends if not is_gate(seen.trace, end)] or ends
    ends = [end for end in ends if not is_count(seen.trace, end)] or ends
    ends = [_of_class_tokens(seen, _of_one_query(seen, end)) for end in ends]
    found = [end for end in ends if end.site is not None]
    picked = [end for end in ends if end.kind in {"picked", "attended"}]
    unread = [end for end in ends if end.site is None and end not in picked]
    if found:
        maps = _united(seen, found)
        others = [end for end in (*picked, *unread) if not shares_source(seen.trace, end, found)]
        if not others:
            return _with_rows(seen, maps)
        raise _refusal(seen, f"beside {maps} another way leads to the logits ({others[0]})")
    if picked and not unread:
        return _attention(seen, picked)
    small = [pooling for pooling in poolings(seen.trace) if pooling.positions == 1]
    if small and not any(end.learned for end in unread):
        raise FeatureMapError(
            f"the last map before the classifier has one position only ({small[-1]}): "
            "its maximum is its mean",
            "model.preprocessing.crop",
            "Use a larger input",
        )
    raise _refusal(seen, _problem(seen, unread))


def _is_map(trace: Trace) -> bool:
    """Whether the output has positions itself."""
    end = None if trace.end is None else trace.nodes[trace.end]
    return end is not None and end.positional and len(end.shape) > 2  # noqa: PLR2004  (N, K)


def _united(seen: Probe, ends: Sequence[End]) -> FeatureSite:
    """The maps of all ends that the output depends on, the last one first."""
    sites: dict[int, FeatureSite] = {}
    for end in sorted(ends, key=lambda end: end.node):
        assert end.site is not None
        sites[end.map] = end.site
    if len({site.shape[0] == 1 for site in sites.values()}) > 1:
        # A mask by whose sum a mean is taken is no feature.
        sites = {place: site for place, site in sites.items() if site.shape[0] > 1}
    found = list(reversed(sites.values()))
    if len(found) > 1:
        found = [site for site in found if seen.measure.reaches(site)] or found
        found = [site for site in found if seen.measure.varies(site)] or found
    return replace(found[0], also=tuple(found[1:]))


def _with_rows(seen: Probe, site: FeatureSite) -> FeatureSite:
    """The same with what its rows are, by measurement: images, or tiles of images."""
    first, *others = [seen.measure.rows(part) for part in site.parts]
    return replace(first, also=tuple(others))


def _of_one_query(seen: Probe, end: End) -> End:
    """A weighted mean of tokens, as class attention where learned tokens are among them.

    With one head and no such tokens an attention of one query is a weighted mean of a map, and
    where that cannot be read, it is not read as what it is not.
    """
    every = seen.trace.attentions
    if end.kind == "weighed" and end.site is not None and every:
        is_class = seen.measure.learned_tokens(end.site.positions, every) > 0
        return replace(end, kind="attended", site=None) if is_class else end
    one = single_attention(seen.trace, end.node) if end.kind == "attended" else None
    if (
        one is not None
        and one.site.shape[0] == 1
        and not seen.measure.learned_tokens(one.keys, every)
    ):
        return replace(end, kind="other")
    return end


def _of_class_tokens(seen: Probe, end: End) -> End:
    """A mean of learned tokens alone, as these picked."""
    node, every = seen.trace.nodes[end.map], seen.trace.attentions
    if end.kind != "pooled" or not node.taken or node.source is None or not every:
        return end
    source = seen.trace.nodes[node.source].layout
    count = 0 if source is None else positions(source)
    if max(node.taken) < seen.measure.learned_tokens(count, every):
        return replace(end, node=end.map, kind="picked", site=None)
    return end


def _attention(seen: Probe, picked: Sequence[End]) -> FeatureSite:
    """The attention of the class tokens that are picked, if they alone reach the logits."""
    tokens = sorted({token for end in picked for token in picked_tokens(seen.trace, end)})
    upstream = seen.trace.upstream(max(end.node for end in picked))
    last: Attention | None = None
    for attention in reversed(seen.trace.attentions):
        if not _belongs(attention, upstream, picked):
            continue
        last = last or attention
        queries = tuple(tokens) if attention.queries > 1 else (0,)
        site = seen.measure.class_attention(attention, queries, seen.trace.attentions)
        if site is not None:
            return site
    if last is not None:
        raise _refusal(
            seen,
            f"more than the first token of the last self-attention ({last.site}) reaches the "
            "output, so that there is no CLS token",
        )
    raise _refusal(
        seen,
        f"a token is picked ({picked[-1]}), and the model has no self-attention that can be read",
    )


def _belongs(attention: Attention, upstream: set[int], picked: Sequence[End]) -> bool:
    # A module's attention is noted before the nodes that it makes.
    before = attention.node in upstream or attention.site.function is None
    return before and attention.node <= max(end.node for end in picked)


def _problem(seen: Probe, unread: Sequence[End]) -> str:
    maps = [site for site in poolings(seen.trace) if site.positions > 1]
    if maps:
        return f"the last global pooling ({maps[-1]}) is not the end of the feature maps"
    how = f" ({unread[-1]})" if unread else ""
    return (
        "the model has no global average or maximum pooling over a map, flattens no map of a "
        f"convolution into a linear function, and has no self-attention that can be read{how}"
    )


def _named(seen: Probe, layer: str) -> FeatureSite:
    where = f"model.feature_layer = {layer!r}"
    if layer not in seen.modules:
        close = get_close_matches(layer, seen.modules, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise FeatureMapError(f"the model has no module of this name{hint}", where, _ADVICE)
    attentions = [part.site for part in seen.trace.attentions if part.site.module == layer]
    modules = [site for site in attentions if site.function is None]
    if modules:
        return modules[-1]
    found, problem = _read_named(seen, layer)
    if found is None:
        raise FeatureMapError(f"{problem}; {_candidates(seen)}", where, _ADVICE)
    return found


def _read_named(seen: Probe, layer: str) -> tuple[FeatureSite | None, str]:
    own = [(site, node) for site, node in seen.trace.maps if site.module == layer]
    outputs = [pair for pair in own if pair[0].kind == "module_output"]
    problem = (
        "neither the output nor the input of this module is a floating-point map (N, C, H, W), "
        "(N, H, W, C) or (N, tokens, C) with more than one position"
    )
    spread = [pair for pair in outputs if seen.trace.nodes[pair[1]].positional]
    for site, node in reversed(spread or own):
        found, why = named_map(seen.trace, site, node)
        if found is None:
            problem = why or problem
            continue
        if is_lost(seen.trace) and not seen.measure.reaches(found):
            problem = "the output of this module does not reach the logits"
            continue
        try:
            return seen.measure.rows(_without_learned(seen, found)), ""
        except FeatureMapError as error:
            return None, error.problem
    return None, problem


def _without_learned(seen: Probe, site: FeatureSite) -> FeatureSite:
    """Tokens without the learned ones in front, which are no part of the image."""
    if site.layout.dimensions != _TOKEN_DIMENSIONS or not seen.trace.attentions:
        return site
    channels, rows, tokens = site.shape
    skip = seen.measure.learned_tokens(rows * tokens, seen.trace.attentions)
    if not skip:
        return site
    return replace(site, shape=(channels, 1, tokens - skip), layout=replace(site.layout, skip=skip))


def _candidates(seen: Probe) -> str:
    """The modules that can be named, the last ones."""
    names = dict.fromkeys(
        site.module for site, _ in reversed(seen.trace.maps) if site.kind == "module_output"
    )
    found: list[FeatureSite] = []
    for name in list(names)[:_TRIED_CANDIDATES]:
        site, _ = _read_named(seen, name)
        if site is not None and site.kind == "module_output":
            found.append(site)
        if len(found) == _LISTED_CANDIDATES:
            break
    if not found:
        return _NONE
    listed = ", ".join(
        f"{site.module} ({'x'.join(map(str, site.shape))})" for site in reversed(found)
    )
    return f"the last maps are the outputs of: {listed}"


def _refusal(seen: Probe, problem: str) -> FeatureMapError:
    candidates = _candidates(seen)
    advice = _ADVICE if candidates != _NONE else _NO_MAP
    return FeatureMapError(f"{problem}; {candidates}", "model.feature_layer", advice)
