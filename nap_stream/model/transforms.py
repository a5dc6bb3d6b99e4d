"""Element-wise functions between a layer's activations and its pooling: which of them are which."""

from collections.abc import Container

from nap_stream.model.graph import ACTIVATIONS, ADAPTIVE_POOLINGS, REDUCTIONS, Trace

WINDOWED = frozenset({"avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d", "lp_pool2d"})
NEUTRAL = frozenset(
    {"dropout", "feature_dropout", "dropout2d", "contiguous", "clone", "to", "float", "half"}
    | {"type", "type_as", "detach", "data", "alias", "nan_to_num", "bfloat16"}
)
SCALING = frozenset(
    {"mul", "rmul", "imul", "div", "truediv", "add", "radd", "sub", "rsub"}
    | {"multiply", "divide", "true_divide", "subtract"}
)
CLAMPING = frozenset({"clamp", "clamp_min", "clip", "maximum"})
_TURNING = frozenset({"neg", "negative", "positive"})
_LINEAR = SCALING | _TURNING
_TRANSFORMS = (
    _LINEAR
    | CLAMPING
    | frozenset({"pow", "rpow", "float_power", "square", "sqrt", "rsqrt", "exp", "expm1", "exp2"})
    | frozenset({"log", "log1p", "log2", "log10", "abs", "absolute", "clamp_max", "minimum"})
    | frozenset({"rdiv", "reciprocal", "sign", "sgn", "sin", "cos", "tan", "atan", "sinh", "erf"})
    | frozenset({"special_expm1", "special_log1p", "special_exp2", "logit", "round", "floor"})
)
_LOG_SIGMOIDS = (("log_sigmoid",), ("sigmoid", "log"))
_SPELLED_OUT = (
    ("exp", "log1p"),
    ("exp", "add", "log"),
    ("exp", "add", "reciprocal"),
    ("exp", "add", "rdiv"),
    *((*log, turn) for turn in ("neg", "mul", "rmul", "rsub") for log in _LOG_SIGMOIDS),
    *_LOG_SIGMOIDS,
)
"""Softplus, sigmoid and the logarithm of it, function by function, of x or of -x."""


def before_transforms(trace: Trace, index: int, parent: int) -> tuple[int, int]:
    """The activations before element-wise transforms, and the call that reads them.

    The first element-wise function after a layer is its activation, where it is known as one;
    whatever follows it is a transform. A constant factor, or sign, is part of the layer.
    """
    chain: list[int] = []
    place = parent
    while _is_elementwise(trace, place):
        chain.append(place)
        place = trace.nodes[place].source or 0
    chain.reverse()
    functions = [place for place in chain if trace.nodes[place].name not in NEUTRAL]
    while functions and trace.nodes[functions[0]].name in _LINEAR:
        functions.pop(0)
    if not functions:
        return index, parent
    names = [trace.nodes[place].name for place in functions]
    spelled = next((part for part in _SPELLED_OUT if tuple(names[: len(part)]) == part), ())
    if spelled:
        functions = functions[len(spelled) :]
    # The clamp of a generalised mean is no activation, one before that is.
    elif names[0] in ACTIVATIONS or (names[0] in CLAMPING and set(names[1:2]) <= CLAMPING):
        functions.pop(0)
    if not functions:
        return index, parent
    reader = functions[0]
    source = trace.nodes[reader].source
    assert source is not None
    return reader, source


def _is_elementwise(trace: Trace, place: int) -> bool:
    node = trace.nodes[place]
    if node.source is None:
        return False
    single = node.operands == 1 and len(node.parents) == 1
    known = node.name in _TRANSFORMS or node.name in ACTIVATIONS or node.name in NEUTRAL
    return (
        known
        and (single or node.name == "prelu")
        and (trace.nodes[node.source].shape == node.shape)
    )


def pooling_before(trace: Trace, place: int, shaping: Container[str]) -> int | None:
    """The call that pools a map in part, of which a tensor is the result; None where none did.

    Element-wise functions and calls of ``shaping`` may stand between.
    It pools to a fixed size, or leaves one position of an axis: what it repeats, or takes together,
    is seen in its input alone.
    """
    while not _pools_in_part(trace, place):
        if trace.nodes[place].name not in shaping and not _is_elementwise(trace, place):
            return None
        source = trace.nodes[place].source
        if source is None:
            return None
        place = source
    return place


def _pools_in_part(trace: Trace, place: int) -> bool:
    node = trace.nodes[place]
    if node.source is None or not trace.nodes[node.source].positional:
        return False
    if node.name in ADAPTIVE_POOLINGS:
        return True
    source = trace.nodes[node.source]
    if source.layout is None:
        return False
    taken = node.reduced if node.name in REDUCTIONS else frozenset[int]()
    if node.name in WINDOWED:
        sides = enumerate(zip(node.shape, source.shape, strict=False))
        taken = frozenset(axis for axis, (after, before) in sides if after == 1 < before)
    held = {role for axis in taken for role, _ in source.layout[axis]}
    return held == {"positions"}
