"""Where positions end on the way to the logits, and which map is read there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nap_stream.model.facts import FeatureSite, MapLayout
from nap_stream.model.graph import (
    ADAPTIVE_POOLINGS,
    ATTENTIONS,
    PICKING,
    REDUCTIONS,
    Attention,
    Node,
    Trace,
)
from nap_stream.model.layout import Layout, axis_of, positions, role_of
from nap_stream.model.transforms import (
    NEUTRAL,
    SCALING,
    WINDOWED,
    before_transforms,
    pooling_before,
)

_POOLINGS = ADAPTIVE_POOLINGS | WINDOWED
_FLATTENING = frozenset({"flatten", "reshape", "view"})
_SORTING = frozenset({"sort", "topk"})
_DENSE = frozenset({"linear", "addmm", "matmul", "conv2d", "conv1d"})
_ATTENDING = frozenset({"matmul", "bmm", "einsum", "multi_head_attention_forward"}) | ATTENTIONS
_SHAPING = (
    _FLATTENING
    | frozenset({"unflatten", "unsqueeze", "squeeze", "transpose", "permute", "movedim", "mT"})
    | frozenset({"contiguous", "expand", "expand_as"})
)
_PRODUCTS = frozenset({"matmul", "bmm", "einsum"})
_MULTIPLIED = frozenset({"mul", "multiply"})
_NO_CHANNELS = frozenset({"images", "positions"})
_BOUNDED = frozenset({"sigmoid", "hardsigmoid", "softmax"})
_MULTIPLYING = _PRODUCTS | {"mul", "rmul", "imul", "multiply"}
_MOVING = (
    PICKING
    | NEUTRAL
    | _FLATTENING
    | {"permute", "transpose", "layer_norm", "cat", "unsqueeze", "squeeze", "rms_norm", "norm"}
)
_MAP_DIMENSIONS = 4

EndKind = Literal["pooled", "weighed", "flattened", "picked", "attended", "other"]


@dataclass(frozen=True, slots=True)
class End:
    """A call, at ``node``, after which nothing of a map's positions is left.

    ``map`` is the node of the map, ``site`` where it is read, None where that is not known. A map
    is ``weighed`` where its positions are summed by weights that all channels share.
    """

    node: int
    map: int
    kind: EndKind
    learned: bool
    call: str
    site: FeatureSite | None = None

    def __str__(self) -> str:
        return self.call


def ends_of(trace: Trace) -> list[End]:
    """All ends on the way to the logits, behind which there is no other map.

    Where that way was lost, the ends that no later map depends on.
    """
    nodes = trace.nodes
    found: dict[tuple[int, int], End] = {}
    waiting, seen = _starts(trace), set[int]()
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        for parent in nodes[index].parents:
            if nodes[parent].positional:
                found[index, parent] = _end(trace, index, parent)
            else:
                waiting.append(parent)
    return _without_repeats(list(found.values()))


def _starts(trace: Trace) -> list[int]:
    if trace.end is not None:
        return [trace.end]
    used = {parent for node in trace.nodes if node.positional for parent in node.parents}
    return [
        index
        for index, node in enumerate(trace.nodes)
        if not node.positional and index not in used and node.parents
    ]


def _without_repeats(ends: Sequence[End]) -> list[End]:
    """Of an attention's several parents, and of one call's, what could be read."""
    read = {end.node for end in ends if end.site is not None}
    attended = {end.node for end in ends if end.kind == "attended"}
    kept: dict[int, End] = {}
    result = []
    for end in ends:
        if end.site is None and end.node in read:
            continue
        if end.node in attended and end.node in kept:
            continue
        kept[end.node] = end
        result.append(end)
    return result


def poolings(trace: Trace) -> list[FeatureSite]:
    """What enters each global pooling, of any number of positions, in order."""
    found = []
    for node in trace.nodes:
        pools = node.name in _POOLINGS or (node.name in REDUCTIONS and node.reduced)
        if pools and not node.positional and node.reads is not None and node.source is not None:
            source = trace.nodes[node.source]
            if len(source.shape) == _MAP_DIMENSIONS:
                found.append(_placed(node.reads, source, MapLayout()))
    return found


def _end(trace: Trace, index: int, parent: int) -> End:
    node, source = trace.nodes[index], trace.nodes[parent]
    size = "x".join(map(str, source.shape[1:]))
    call = f"{node.name}()" if node.name else "a call that is not one of torch's"
    plain = End(index, parent, "other", source.learned, f"{call} of {size}")
    if found := _weighed(trace, index):
        return replace(plain, kind="weighed", map=found[0], site=found[1])
    if node.source == parent:
        if found := map_end(trace, index):
            return replace(plain, kind="pooled", map=found[0], site=found[1])
        if node.name in PICKING and node.taken:
            return replace(plain, kind="picked")
        if found := _flattened(trace, index, parent):
            return replace(plain, kind="flattened", map=found[0], site=found[1])
    is_sum_of_weighed = node.name in REDUCTIONS and source.name in _MULTIPLIED
    if (node.name in _ATTENDING or is_sum_of_weighed) and single_attention(trace, index):
        return replace(plain, kind="attended")
    return plain


def single_attention(trace: Trace, index: int) -> Attention | None:
    """The last attention of one query that a node depends on."""
    upstream = trace.upstream(index)
    single = [one for one in trace.attentions if one.queries == 1 and one.node in upstream]
    return single[-1] if single else None


def _weighed(trace: Trace, index: int) -> tuple[int, FeatureSite | None] | None:
    """The map whose positions are summed by weights that all channels share, however spelled.

    None where the call is no such sum; without a site where the map cannot be read.
    """
    node = trace.nodes[index]
    product = index
    while trace.nodes[product].name == "sum" and trace.nodes[product].source is not None:
        product = trace.nodes[product].source or 0
    names = _PRODUCTS if product == index else _MULTIPLIED
    parents = trace.nodes[product].parents
    if trace.nodes[product].name not in names or len(parents) != 2:  # noqa: PLR2004  two factors
        return None
    for weights, values in (parents, parents[::-1]):
        if _share(trace.nodes[weights], trace.nodes[values], node):
            return _read_anywhere(trace, product, values) or (values, None)
    return None


def _share(weights: Node, values: Node, result: Node) -> bool:
    """Whether of each position there is one weight for all channels, and these are left.

    A softmax over the positions of each channel is weights of them, too.
    """
    if weights.layout is None or values.layout is None or not weights.positional:
        return False
    if weights.weighing and not values.weighing and weights.layout == values.layout:
        return math.prod(result.shape) * positions(values.layout) == math.prod(values.shape)
    roles = {role for axis in weights.layout for role, _ in axis}
    lies = layout_of(values)
    if lies is None or "channels" in roles or positions(weights.layout) != positions(values.layout):
        return False
    left = values.shape[lies.channels] * values.shape[lies.images]
    return values.shape[lies.channels] > 1 and math.prod(result.shape) == left


def _read_anywhere(trace: Trace, product: int, values: int) -> tuple[int, FeatureSite] | None:
    """Where a map is read that a product need not take first: there, or where else it is taken."""
    place: int | None = values
    while place is not None:
        first = product if place == values else None
        readers = [first] if first is not None and trace.nodes[first].source == place else []
        readers += [n for n, node in enumerate(trace.nodes) if node.source == place]
        reader = next((n for n in readers if trace.nodes[n].reads is not None), None)
        if reader is not None:
            reader, place = before_transforms(trace, reader, place)
            reads = trace.nodes[reader].reads
            layout = layout_of(trace.nodes[place])
            if reads is None or layout is None:
                return None
            return place, _placed(reads, trace.nodes[place], layout)
        output = next((site for site, node in trace.maps if node == place), None)
        layout = layout_of(trace.nodes[place])
        if output is not None and output.kind == "module_output" and layout is not None:
            return place, _placed(output, trace.nodes[place], layout)
        place = trace.nodes[place].source if trace.nodes[place].name in _SHAPING else None
    return None


def map_end(trace: Trace, index: int) -> tuple[int, FeatureSite] | None:
    """The map that a pooling call takes, and where it is read; None for another call."""
    node = trace.nodes[index]
    if node.source is None:
        return None
    parent = node.source
    layout = _pooled_layout(node, trace.nodes[parent])
    if layout is None:
        return None
    index, parent, layout = _before_poolings(trace, index, parent, layout)
    index, parent = _before_sorting(trace, index, parent)
    index, parent = before_transforms(trace, index, parent)
    reads = trace.nodes[index].reads
    if reads is None:
        return None
    return parent, _placed(reads, trace.nodes[parent], layout)


def _pooled_layout(node: Node, source: Node) -> MapLayout | None:
    """How the map lies of which a call takes all positions of each channel together."""
    dimensions = len(source.shape)
    images = _images_axis(source.layout)
    if node.name in _POOLINGS:
        return MapLayout(dimensions, 1 if dimensions > 2 else 0, images)  # noqa: PLR2004  a map
    if node.name not in REDUCTIONS or not node.reduced:
        return None
    left = [axis for axis in range(dimensions) if axis not in {*node.reduced, images}]
    wide = [axis for axis in left if source.shape[axis] > 1] or left
    if len(wide) != 1 or images in node.reduced:
        return None
    roles = role_of(source.layout[wide[0]]) if source.layout is not None else "channels"
    if roles != "channels" and source.shape[wide[0]] > 1:
        return None
    return MapLayout(dimensions, wide[0], images)


def _images_axis(layout: Layout | None) -> int:
    for index, axis in enumerate(layout or ()):
        if any(role == "images" for role, _ in axis):
            return index
    return 0


def layout_of(node: Node) -> MapLayout | None:
    """How a map lies whose one axis of channels is known."""
    channels = axis_of(node.layout, "channels") if node.layout is not None else None
    if channels is None:
        return None
    return MapLayout(len(node.shape), channels, _images_axis(node.layout))


def _before_poolings(
    trace: Trace, index: int, parent: int, layout: MapLayout
) -> tuple[int, int, MapLayout]:
    """Where positions are taken together by one pooling after another: before the first."""
    while (pooling := pooling_before(trace, parent, _SHAPING)) is not None:
        source = trace.nodes[pooling].source
        before = None if source is None else layout_of(trace.nodes[source])
        if source is None or before is None:
            break
        index, parent, layout = pooling, source, before
    return index, parent, layout


def _before_sorting(trace: Trace, index: int, parent: int) -> tuple[int, int]:
    """Where the largest activations alone are pooled: the map before these are picked."""
    place: int | None = parent
    while place is not None and trace.nodes[place].name in PICKING:
        place = trace.nodes[place].source
    if place is None or trace.nodes[place].name not in _SORTING:
        return index, parent
    source = trace.nodes[place].source
    if source is None or len(trace.nodes[source].shape) != len(trace.nodes[parent].shape):
        return index, parent
    return place, source


def _flattened(trace: Trace, index: int, parent: int) -> tuple[int, FeatureSite] | None:
    """The map that is flattened into a linear function, or covered by a convolution's kernel."""
    node = trace.nodes[index]
    if node.name.startswith("conv"):
        return _read_before(trace, index)
    place = index if node.name in _FLATTENING else parent
    if node.name not in _DENSE | _FLATTENING or len(node.parents) > 1:
        return None
    while trace.nodes[place].name not in _FLATTENING:
        source = trace.nodes[place].source
        if source is None or trace.nodes[source].shape != trace.nodes[place].shape:
            return None
        place = source
    return _read_before(trace, place)


def _read_before(trace: Trace, index: int) -> tuple[int, FeatureSite] | None:
    """What a call takes, or a pooling to a fixed size or in stripes before it, as a map."""
    source = trace.nodes[index].source
    layout = None if source is None else layout_of(trace.nodes[source])
    if source is None or layout is None:
        return None
    place, parent, layout = _before_poolings(trace, index, source, layout)
    if place != index:
        place, parent = before_transforms(trace, place, parent)
    reads = trace.nodes[place].reads
    if reads is None or not trace.nodes[parent].positional:
        return None
    return parent, _placed(reads, trace.nodes[parent], layout)


def _placed(reads: FeatureSite, source: Node, layout: MapLayout) -> FeatureSite:
    return replace(reads, shape=_shape(source, layout), layout=layout)


def _shape(source: Node, layout: MapLayout) -> tuple[int, int, int]:
    rest = [
        size
        for axis, size in enumerate(source.shape)
        if axis not in {layout.images, layout.channels}
    ]
    channels = source.shape[layout.channels]
    if len(rest) == 2:  # noqa: PLR2004  height and width
        return channels, rest[0], rest[1]
    positions = 1
    for size in rest:
        positions *= size
    return channels, 1, positions


def named_map(trace: Trace, site: FeatureSite, node: int) -> tuple[FeatureSite | None, str]:
    """The site of a module's input or output with its layout, or why it is no map."""
    found = trace.nodes[node]
    if not found.positional:
        return None, ""
    layout = layout_of(found)
    problem = _why_no_map(trace, node)
    if problem or layout is None:
        size = "x".join(map(str, found.shape[1:]))
        side = "input" if site.kind == "module_input" else "output"
        return None, f"the {side} of this module ({size}) {problem}"
    return _placed(site, found, layout), ""


def _why_no_map(trace: Trace, node: int) -> str:
    found = trace.nodes[node]
    upstream = set() if is_lost(trace) else trace.upstream(trace.end or 0)
    problems = {
        "has no one axis of channels, as heads x tokens x width or windows have none": layout_of(
            found
        )
        is None,
        "is weights of an attention": found.weighing,
        "has rows that are parts of images": is_attended_after(trace, node),
        "is pixels": not found.learned and bool(trace.attentions),
        "does not reach the logits": bool(upstream) and node not in upstream,
        "is a linear map of the pixels, a patch embedding": (
            not found.activated and bool(trace.attentions)
        ),
    }
    return next((problem for problem, is_so in problems.items() if is_so), "")


def is_lost(trace: Trace) -> bool:
    """Whether on the way to the logits there is a call that is not one of torch's.

    What reaches the logits by it can be measured alone.
    """
    if trace.end is None:
        return True
    return any(not trace.nodes[node].name for node in trace.upstream(trace.end) if node)


def picked_tokens(trace: Trace, end: End) -> tuple[int, ...]:
    """Which tokens of the last attention an end picks, by their numbers there."""
    node = trace.nodes[end.node]
    tokens = node.taken or (0,)
    place = node.source
    while place is not None:
        node = trace.nodes[place]
        if node.name in PICKING and node.taken:
            tokens = tuple(node.taken[token] for token in tokens if token < len(node.taken))
        elif node.name not in _MOVING:
            break
        place = node.source
    return tokens


def is_attended_after(trace: Trace, place: int) -> bool:
    """Whether rows that are no images attend to each other after a map: they are its positions."""
    node = trace.nodes[place]
    layout = layout_of(node)
    axis = 0 if layout is None else layout.images
    if node.shape[axis] == trace.nodes[0].shape[0] or trace.end is None:
        return False
    upstream = trace.upstream(trace.end)
    return any(
        attention.node in upstream and place in trace.upstream(attention.node)
        for attention in trace.attentions
    )


def shares_source(trace: Trace, end: End, ends: Sequence[End]) -> bool:
    """Whether an end is of the same tensor as one of others, picked apart or normed."""
    origins = _origins(trace, end.map)
    return any(origins & _origins(trace, other.map) for other in ends)


def _origins(trace: Trace, place: int) -> set[int]:
    found = {place}
    waiting = [place]
    while waiting:
        node = trace.nodes[waiting.pop()]
        if node.name in _MOVING:
            found.update(node.parents)
            waiting.extend(node.parents)
    return found


def is_count(trace: Trace, end: End) -> bool:
    """Whether an end is a sum of weights, by which a mean is taken: there are no channels."""
    layout = trace.nodes[end.map].layout
    roles = {role for axis in layout or () for role, _ in axis}
    return end.site is None and trace.nodes[end.node].name in REDUCTIONS and roles == _NO_CHANNELS


def is_gate(trace: Trace, end: End) -> bool:
    """Whether an end reaches the logits as a factor alone, of a sigmoid or a softmax.

    Such a gate weighs features of another map, as squeeze-and-excitation does (arXiv 1709.01507).
    """
    if trace.end is None:
        return False
    below = {end.node}
    for index in range(end.node + 1, trace.end + 1):
        if below.intersection(trace.nodes[index].parents):
            below.add(index)
    waiting = [trace.end]
    while waiting:
        index = waiting.pop()
        if index == end.node:
            return False
        own = below.intersection(trace.nodes[index].parents)
        factor = next(iter(own)) if len(own) == 1 else None
        is_product = trace.nodes[index].name in _MULTIPLYING and len(trace.nodes[index].parents) > 1
        if not (is_product and factor is not None and _is_bounded(trace, factor, end.node)):
            waiting.extend(own)
    return trace.end in below


def _is_bounded(trace: Trace, place: int, start: int) -> bool:
    """Whether a factor is the result of a sigmoid or a softmax, but for its shape and scale."""
    while place != start:
        node = trace.nodes[place]
        if node.name in _BOUNDED:
            return True
        if node.name not in _SHAPING | NEUTRAL | SCALING | PICKING or node.source is None:
            return False
        place = node.source
    return False
