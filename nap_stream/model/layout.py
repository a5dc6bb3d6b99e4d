"""Which axes of a tensor are images, channels and positions, followed from call to call.

Four axes alone do not say what they are: channels may stand second or last, and heads, tokens and
width make four too. What each axis holds follows from the pixels on, through what every function
does to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch

Role = Literal["images", "channels", "positions"]
Axis = tuple[tuple[Role, int], ...]
"""What an axis holds, outermost first, with sizes; empty for an axis of size 1."""
Layout = tuple[Axis, ...]
Known = Callable[[Any], Layout | None]

_REGROUPING = frozenset(
    {"flatten", "reshape", "view", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze"}
)
_REORDERING = frozenset(
    {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H"}
)
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"})
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})
_REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "std", "var", "norm", "median"}
    | {"prod", "nanmean", "quantile"}
)
_PIECES = frozenset({"chunk", "split", "tensor_split", "narrow", "split_with_sizes"})
_PRODUCTS = frozenset({"matmul", "bmm"})
_RESIZING = frozenset(
    {"avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "lp_pool2d", "pad"}
    | {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"}
    | {"interpolate", "upsample", "grid_sample", "adaptive_avg_pool3d"}
    | {"boolean_dispatch", "fn"}
)
_UNFOLDING = frozenset({"unfold", "im2col"})
_EXPANDING = frozenset({"expand", "expand_as", "broadcast_to"})
_SHUFFLING = frozenset({"pixel_shuffle", "pixel_unshuffle"})
_SEQUENCE = 3
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def of_pixels(shape: Sequence[int]) -> Layout:
    """The layout of a model's input (N, C, H, W)."""
    roles: tuple[Role, ...] = ("images", "channels", "positions", "positions")
    return tuple(_axis(role, size) for role, size in zip(roles, shape, strict=True))


def of_rows(layout: Layout) -> Layout:
    """The same where tiles of images are images of their own: the first axis holds these alone."""
    return (_axis("images", math.prod(size for _, size in layout[0])), *layout[1:])


def positions(layout: Layout) -> int:
    """How many positions a tensor holds of each image and channel, tiles included."""
    return math.prod(size for axis in layout for role, size in axis if role == "positions")


def role_of(axis: Axis) -> Role | None:
    """What an axis holds, if it is one thing alone."""
    roles = {role for role, _ in axis}
    return next(iter(roles)) if len(roles) == 1 else None


def axis_of(layout: Layout, role: Role) -> int | None:
    """The one axis that holds this and nothing else; None where there is none or are several."""
    holding = [index for index, axis in enumerate(layout) if role in {part for part, _ in axis}]
    pure = len(holding) == 1 and role_of(layout[holding[0]]) == role
    return holding[0] if pure else None


def plain(name: str) -> str:
    """A function's name alone: in place, as an operator or with indices, it does the same."""
    return name.strip("_").removesuffix("_with_indices")


def follow(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor, known: Known
) -> Layout | None:
    """Return the layout of a call's result, or of one of them; None where it is not known.

    ``name`` is the function's, plain; ``known`` gives the layouts of its arguments.
    """
    try:
        found = _follow(name, args, kwargs, result, known)
    except (IndexError, TypeError, ValueError, RuntimeError, StopIteration):
        # Called in a way that is not foreseen here.
        return None
    return found if found is not None and _sizes(found) == tuple(result.shape) else None


def _follow(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor, known: Known
) -> Layout | None:
    shape = tuple(result.shape)
    if name in _CONCATENATIONS or name == "stack":
        return _joined(name, args, kwargs, shape, known)
    if name == "einsum":
        return _einsum(args, known)
    layout = known(args[0] if args else next(iter(kwargs.values())))
    if name in _PRODUCTS:
        return _product(layout, known(args[1]), args, shape)
    if name == "scaled_dot_product_attention":
        values = args[2] if len(args) > 2 else kwargs["value"]  # noqa: PLR2004  value is third
        return _attended(layout, known(values), shape)
    for names, rule in _RULES:
        if layout is not None and name in names:
            return rule(layout, args, kwargs, shape)
    return _elementwise(args, shape, known)


def _reordered(
    name: str,
    layout: Layout,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    _shape: tuple[int, ...],
) -> Layout:
    return tuple(layout[index] for index in _order(name, args, kwargs, len(layout)))


def _convolved(layout: Layout, _args: Any, _kwargs: Any, shape: tuple[int, ...]) -> Layout:
    # In one dimension a convolution may mix tokens; in two its channels are channels.
    roles: list[Role] = [_role(layout[1]) if len(layout) == _SEQUENCE else "channels"]
    roles += [role_of(axis) or "positions" for axis in layout[2:]]
    return (layout[0], *(_axis(role, n) for role, n in zip(roles, shape[1:], strict=True)))


def _dense(layout: Layout, _args: Any, _kwargs: Any, shape: tuple[int, ...]) -> Layout:
    return (*layout[:-1], _axis(_role(layout[-1]), shape[-1]))


def _unfolded(layout: Layout, _args: Any, _kwargs: Any, shape: tuple[int, ...]) -> Layout | None:
    if len(shape) != _SEQUENCE:
        return None
    channels = _sizes(layout)[1]
    window: Axis = (*_axis("channels", channels), *_axis("positions", shape[1] // channels))
    return (layout[0], window, _axis("positions", shape[2]))


def _picked(
    layout: Layout, args: Sequence[Any], kwargs: Mapping[str, Any], _shape: tuple[int, ...]
) -> Layout:
    dim = _argument(args, kwargs, 1, "dim", 0) % len(layout)
    return tuple(axis for index, axis in enumerate(layout) if index != dim)


def _gotten(
    layout: Layout, args: Sequence[Any], _kwargs: Any, shape: tuple[int, ...]
) -> Layout | None:
    return _indexed(layout, args[1], shape)


def _lessened(
    layout: Layout, args: Sequence[Any], kwargs: Mapping[str, Any], shape: tuple[int, ...]
) -> Layout | None:
    dims = reduced_dims(args, kwargs, len(layout))
    if not dims:
        return layout if _sizes(layout) == shape else None
    if len(shape) == len(layout):
        return tuple(() if index in dims else axis for index, axis in enumerate(layout))
    return tuple(axis for index, axis in enumerate(layout) if index not in dims)


def _expanded(layout: Layout, _args: Any, _kwargs: Any, shape: tuple[int, ...]) -> Layout:
    # What is repeated is no position more.
    return tuple(axis or _axis("channels", n) for axis, n in zip(layout, shape, strict=True))


def reduced_dims(args: Sequence[Any], kwargs: Mapping[str, Any], dimensions: int) -> set[int]:
    """Which axes a reduction takes together, counted from 0; empty for all."""
    named = kwargs.get("dim", kwargs.get("axis"))
    reduced = args[1] if len(args) > 1 and named is None else named
    if isinstance(reduced, bool) or reduced is None or isinstance(reduced, torch.Tensor):
        return set()
    listed = reduced if isinstance(reduced, Sequence) else (reduced,)
    return {int(dim) % dimensions for dim in listed}


def regrouped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """Lay the same elements, in their order, out in other axes."""
    parts = _merged([part for axis in layout for part in axis])[::-1]
    axes: list[Axis] = []
    for wanted in shape:
        axis: list[tuple[Role, int]] = []
        missing = wanted
        while missing > 1:
            if not parts:
                return None
            role, size = parts.pop()
            if missing % size == 0:
                axis.append((role, size))
                missing //= size
            elif size % missing == 0:
                axis.append((role, missing))
                parts.append((role, size // missing))
                missing = 1
            else:
                return None
        axes.append(tuple(_merged(axis)))
    return None if parts else tuple(axes)


def _merged(parts: Sequence[tuple[Role, int]]) -> list[tuple[Role, int]]:
    return [
        (role, math.prod(size for _, size in group))
        for role, group in groupby(parts, key=lambda part: part[0])
    ]


def _axis(role: Role, size: int) -> Axis:
    return () if size == 1 else ((role, size),)


def _role(axis: Axis) -> Role:
    return role_of(axis) or "channels"


def _sizes(layout: Layout) -> tuple[int, ...]:
    return tuple(math.prod(size for _, size in axis) for axis in layout)


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: int
) -> int:
    return int(args[place] if len(args) > place else kwargs.get(name, default))


def _order(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], dimensions: int) -> list[int]:
    if name in {"T", "mT", "H", "t"}:
        order = list(range(dimensions))
        return [*order[:-2], order[-1], order[-2]] if name == "mT" else order[::-1]
    sizes = _PRIMES[:dimensions]
    probe = torch.empty(sizes, device="meta")
    return [sizes.index(size) for size in getattr(probe, name)(*args[1:], **kwargs).shape]


def _indexed(layout: Layout, index: Any, shape: Sequence[int]) -> Layout | None:
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, torch.Tensor | list) for item in items):
        return _resized(layout, shape)
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    axes: list[Axis] = []
    rest = list(layout)
    for item in items:
        if item is Ellipsis:
            kept = len(layout) - taken
            axes, rest = axes + rest[:kept], rest[kept:]
        elif item is None:
            axes.append(())
        elif isinstance(item, slice):
            axes.append(rest.pop(0))
        else:
            rest.pop(0)
    return _resized(tuple(axes), shape)


def _resized(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The same axes with other sizes; None where one that holds several things has changed."""
    if len(layout) != len(shape):
        return None
    axes: list[Axis] = []
    for axis, before, size in zip(layout, _sizes(layout), shape, strict=True):
        if size in {before, 1}:
            axes.append(axis if before == size else ())
        elif (role := role_of(axis)) is not None:
            axes.append(_axis(role, size))
        else:
            return None
    return tuple(axes)


def _elementwise(args: Sequence[Any], shape: tuple[int, ...], known: Known) -> Layout | None:
    """The layout of broadcast operands: each axis is what the operand of its size says."""
    operands = [arg for arg in args if isinstance(arg, torch.Tensor)]
    layouts = [found for arg in operands if (found := known(arg)) is not None]
    for layout in layouts:
        if _sizes(layout) == shape:
            return layout
    axes: list[Axis] = []
    for place in range(1, len(shape) + 1):
        candidates = [axes_[-place] for axes_ in layouts if len(axes_) >= place]
        size = shape[-place]
        fitting = [axis for axis in candidates if math.prod(n for _, n in axis) == size]
        if not fitting:
            return None
        axes.append(fitting[0])
    return tuple(reversed(axes))


def _joined(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    shape: tuple[int, ...],
    known: Known,
) -> Layout | None:
    parts = args[0] if args else kwargs.get("tensors", ())
    layouts = [found for part in parts if (found := known(part)) is not None]
    dim = _argument(args, kwargs, 1, "dim", 0) % len(shape)
    if not layouts:
        return None
    first = max(layouts, key=lambda layout: (positions(layout), len(layout)))
    if name == "stack":
        # Maps beside each other are more positions; vectors are more channels.
        role: Role = "positions" if positions(first) > 1 else "channels"
        return (*first[:dim], _axis(role, shape[dim]), *first[dim:])
    roles = {role_of(layout[dim]) for layout in layouts if layout[dim]}
    role_ = next(iter(roles)) if len(roles) == 1 else None
    if role_ is None and roles:
        return None
    return (*first[:dim], _axis(role_ or "channels", shape[dim]), *first[dim + 1 :])


def _product(
    left: Layout | None, right: Layout | None, args: Sequence[Any], shape: tuple[int, ...]
) -> Layout | None:
    """A matrix product: batch axes of either, rows of the left, columns of the right."""
    dims = [arg.ndim for arg in args[:2]]
    if min(dims) < 2:  # noqa: PLR2004  matrices
        return None
    batch = next((side[:-2] for side in (left, right) if side and len(side) == len(shape)), None)
    # A constant's axes are channels where it is a weight; its single row is no position.
    rows = left[-2] if left is not None else _single(shape[-2])
    columns = right[-1] if right is not None else _weighted(left, shape[-1])
    if batch is None or rows is None or columns is None:
        return None
    return (*batch, rows, columns)


def _single(size: int) -> Axis | None:
    return () if size == 1 else None


def _weighted(left: Layout | None, size: int) -> Axis | None:
    return None if left is None else _axis(role_of(left[-1]) or "channels", size)


def _attended(query: Layout | None, values: Layout | None, shape: tuple[int, ...]) -> Layout | None:
    if values is None:
        return None
    rows = query[-2] if query is not None else _single(shape[-2])
    return None if rows is None else (*values[:-2], rows, values[-1])


def _einsum(args: Sequence[Any], known: Known) -> Layout | None:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    inputs, _, output = equation.replace(" ", "").partition("->")
    axes: dict[str, Axis] = {}
    pairs = list(zip(inputs.split(","), operands, strict=True))
    for letters, operand in pairs:
        for letter, axis in zip(letters, known(operand) or (), strict=False):
            axes.setdefault(letter, axis)
    for letters, operand in pairs:
        for letter, size in zip(letters, operand.shape, strict=True):
            axes.setdefault(letter, _axis("channels", size))
    return tuple(axes[letter] for letter in output)


_Rule = Callable[[Layout, Sequence[Any], Mapping[str, Any], tuple[int, ...]], Layout | None]
_RULES: tuple[tuple[frozenset[str], _Rule], ...] = (
    (_REGROUPING, lambda layout, _args, _kwargs, shape: regrouped(layout, shape)),
    *((frozenset({name}), partial(_reordered, name)) for name in _REORDERING),
    (_CONVOLUTIONS | _SHUFFLING, _convolved),
    (frozenset({"linear"}), _dense),
    (_UNFOLDING, _unfolded),
    (frozenset({"getitem"}), _gotten),
    (frozenset({"select", "unbind"}), _picked),
    (_REDUCTIONS, _lessened),
    (_PIECES | _RESIZING, lambda layout, _args, _kwargs, shape: _resized(layout, shape)),
    (_EXPANDING, _expanded),
)
