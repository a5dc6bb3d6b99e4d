"""From what a model returns to logits: where they stand in it, and what kind of numbers they are.

Scores are those of logits. Probabilities, sigmoids and votes look like logits to every formula, and
give other numbers: they are told by measurement, and refused or turned into logits.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from nap_stream.errors import ModelError
from nap_stream.model.facts import LogitsHook
from nap_stream.settings.schema import OutputKind

_MATRIX_DIMENSIONS = 2
_DEEPEST = 3
_LISTED = 8
_SMALLEST = 1e-12
_LOGITS = "logits"
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 1e-2
SUM_TOLERANCE = 1e-2
"""Largest difference of a row's sum from one: 16-bit probabilities are rounded so."""
_LEAST_SPREAD = 0.1
"""Part of a row's sum by which a class's values must differ: a model may always say the same."""
ENOUGH_IMAGES = 20
"""Images below which outputs may lie in [0, 1], or be whole numbers, by chance."""


@dataclass(frozen=True, slots=True)
class WrongKind:
    """What a model returns in place of logits, as a sentence, and what to do about it."""

    problem: str
    action: str


_BEST = "Return the logits, what enters the last softmax or sigmoid, which is best"
_ALL_THE_SAME = "If they are logits all the same, set model.output_kind: logits"
_OTHER_KIND = "Set model.output_kind to what the model returns"
PROBABILITIES = WrongKind(
    "the model returns probabilities in place of logits: each image's sum to one",
    f"{_BEST}, or set model.output_kind: probabilities, which takes their logarithms: energy then "
    f"tells nothing. {_ALL_THE_SAME}",
)
_NORMALISED = WrongKind(
    "the model normalises its outputs: each image's absolute values sum to one",
    f"{_BEST}. {_ALL_THE_SAME}",
)
_PARTS = WrongKind(
    "the model returns shares of a whole in place of logits, as percentages are: no output is "
    "negative, and each image's sum to the same",
    f"{_BEST}. {_ALL_THE_SAME}",
)
_VOTES = WrongKind(
    "all outputs are whole numbers, as votes are",
    f"Return the mean of the members' logits. {_ALL_THE_SAME}",
)
_SIGMOID = WrongKind(
    "all outputs lie in [0, 1], as a sigmoid's do",
    f"{_BEST}, or set model.output_kind: sigmoid, which takes it off. {_ALL_THE_SAME}",
)


def logits_hook(
    output: Any, path: str | None, kind: OutputKind | None, *, images: int, where: str
) -> LogitsHook | None:
    """Say what makes logits of what a model returned; None where it is logits already.

    ``path`` and ``kind`` are those of the settings, null where they are to be found: the part
    named logits, or the only floating-point matrix of ``images`` rows.

    Raises:
        ModelError: There is no such part, or more than one; or its rows are probabilities, or one
            number an image, and ``kind`` does not say so.
    """
    if path is not None:
        steps = _parsed(path, output, images)
    elif isinstance(output, torch.Tensor):
        steps = ()
    else:
        steps = _only_matrix(output, images, where)
    found = picked(output, steps)
    if not _is_matrix(found, images):
        return None if not steps else LogitsHook(steps, kind)
    refuse_other_kind(found, kind, where)
    is_as_it_is = kind in {None, "logits", "log_probabilities"} and found.shape[1] > 1
    return None if not steps and is_as_it_is else LogitsHook(steps, kind)


def picked(output: Any, path: Sequence[str]) -> Any:
    """Return the part of a model's output that a path names, by key, number or attribute.

    Raises:
        ModelError: There is none.
    """
    try:
        return reduce(_part, path, output)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model returned {_shown(output)}, and has no {'.'.join(path)!r} in it",
            "model.output",
            "Name the part that holds the logits",
        ) from error


def as_logits(output: Any, kind: OutputKind | None) -> Any:
    """Make logits (N, K) of numbers of a kind, (N, K) or, of the second of two classes, (N, 1).

    Probabilities are clipped at 1e-12 before their logarithm is taken. Logits of one output z are
    (0, z). What is no matrix is returned as it is.
    """
    if not _is_matrix(output, None):
        return output
    is_single = output.shape[1] == 1
    if kind in {None, "logits"}:
        return torch.cat((torch.zeros_like(output), output), dim=1) if is_single else output
    if kind == "log_probabilities" and not is_single:
        return output
    # In float32, 1 - 1e-12 would be 1.
    share = output.double()
    if kind == "log_probabilities":
        share = share.exp()
    if kind == "probabilities" and not is_single:
        return share.clamp(min=_SMALLEST).log().to(torch.float32)
    logit = share.clamp(_SMALLEST, 1 - _SMALLEST).logit().to(torch.float32)
    return torch.cat((torch.zeros_like(logit), logit), dim=1) if is_single else logit


def refuse_other_kind(found: torch.Tensor, kind: OutputKind | None, where: str) -> None:
    """Refuse, of a few images, what no logits (N, K) can be; rows that are not finite tell nothing.

    Raises:
        ModelError: Says what the numbers are, and what to do.
    """
    values = found.detach().float()
    values = values[torch.isfinite(values).all(dim=1)]
    if not len(values):
        return
    tolerance = _TOLERANCE.get(found.dtype, _HALF_TOLERANCE)
    facts = OutputFacts.of(values.cpu().numpy())
    if kind is None and facts.classes == 1:
        raise ModelError(
            "the model returns one number an image, and one class alone tells nothing",
            where,
            "If it is the logit of the second of two classes, set model.output_kind: logits; if it "
            "went through a sigmoid, set model.output_kind: sigmoid. Name both in class_names",
        )
    if kind is None and facts.lowest >= 0 and facts.sum_error <= tolerance:
        raise ModelError(PROBABILITIES.problem, where, PROBABILITIES.action)
    if kind in {"probabilities", "sigmoid"} and not facts.in_unit_interval:
        raise ModelError(_outside(facts, kind), where, _OTHER_KIND)
    if kind == "log_probabilities" and facts.highest > SUM_TOLERANCE:
        raise ModelError(
            f"model.output_kind is log_probabilities, and values go up to {facts.highest:.3g}",
            where,
            _OTHER_KIND,
        )


def not_of_one(kind: OutputKind) -> WrongKind:
    """Where the probabilities of a row do not sum to one."""
    return WrongKind(
        f"model.output_kind is {kind}, and an image's probabilities do not sum to one", _OTHER_KIND
    )


def _outside(facts: "OutputFacts", kind: OutputKind) -> str:
    return (
        f"model.output_kind is {kind}, and values lie in [{facts.lowest:.3g}, {facts.highest:.3g}]"
    )


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What was measured of the logits of n images that a model, and its hook, gave.

    ``sum_error`` is the largest difference of a row's sum from one, ``magnitude_error`` the same of
    its absolute values, ``log_sum`` the largest absolute value of a row's logsumexp. ``sums`` are
    the lowest and the highest sum of a row, ``spread`` is the most that a class's values differ.
    ``is_whole`` says that all values are whole numbers.
    """

    images: int
    classes: int
    lowest: float
    highest: float
    sum_error: float
    magnitude_error: float
    log_sum: float
    sums: tuple[float, float]
    spread: float
    is_whole: bool

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> Self:
        """Measure finite logits (n, K); n and K are 1 at least."""
        values = logits.astype(np.float64)
        highest = values.max(axis=1)
        log_sums = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
        return cls(
            images=len(values),
            classes=values.shape[1],
            lowest=float(values.min()),
            highest=float(highest.max()),
            sum_error=float(np.abs(values.sum(axis=1) - 1).max()),
            magnitude_error=float(np.abs(np.abs(values).sum(axis=1) - 1).max()),
            log_sum=float(np.abs(log_sums).max()),
            sums=(float(values.sum(axis=1).min()), float(values.sum(axis=1).max())),
            spread=float(np.ptp(values, axis=0).max()),
            is_whole=bool((values == np.round(values)).all()),
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self | None:
        """Put measurements of one model together; None of none."""
        if not parts:
            return None
        return cls(
            images=sum(part.images for part in parts),
            classes=parts[0].classes,
            lowest=min(part.lowest for part in parts),
            highest=max(part.highest for part in parts),
            sum_error=max(part.sum_error for part in parts),
            magnitude_error=max(part.magnitude_error for part in parts),
            log_sum=max(part.log_sum for part in parts),
            sums=(min(part.sums[0] for part in parts), max(part.sums[1] for part in parts)),
            spread=max(part.spread for part in parts),
            is_whole=all(part.is_whole for part in parts),
        )

    @property
    def are_zero(self) -> bool:
        """Whether all values are 0."""
        return self.lowest == self.highest == 0

    @property
    def in_unit_interval(self) -> bool:
        """Whether all values lie in [0, 1]."""
        return self.lowest >= 0 and self.highest <= 1

    @property
    def are_parts(self) -> bool:
        """Whether no value is negative and all rows sum to the same, and the values do differ."""
        lowest, highest = self.sums
        differ = self.spread > _LEAST_SPREAD * highest
        return self.lowest >= 0 and highest - lowest <= SUM_TOLERANCE * highest and differ

    @property
    def are_log_probabilities(self) -> bool:
        """Whether each row's exponentials sum to one."""
        return self.log_sum <= SUM_TOLERANCE


def wrong_kind(facts: OutputFacts, kind: OutputKind | None) -> WrongKind | None:
    """Say what outputs are that were taken for logits, and what to do; None where they may be.

    ``facts`` are of images as the stream has them, ``kind`` is that of the settings.
    """
    if kind is not None:
        is_of_one = kind in {"probabilities", "log_probabilities"}
        return None if not is_of_one or facts.are_log_probabilities else not_of_one(kind)
    if facts.images < ENOUGH_IMAGES or facts.are_zero:
        return None
    verdicts = (
        (facts.lowest >= 0 and facts.sum_error <= SUM_TOLERANCE, PROBABILITIES),
        (facts.magnitude_error <= SUM_TOLERANCE, _NORMALISED),
        (facts.is_whole, _VOTES),
        (facts.are_parts, _PARTS),
        (facts.in_unit_interval, _SIGMOID),
    )
    return next((verdict for holds, verdict in verdicts if holds), None)


def kind_warnings(facts: OutputFacts | None) -> Iterator[str]:
    """Outputs that are right as logits, but leave a score without any meaning."""
    if facts is not None and facts.are_zero:
        yield "all logits are 0: were the weights loaded that the head was trained with?"
    elif facts is not None and facts.are_log_probabilities and facts.images >= ENOUGH_IMAGES:
        yield (
            "the logits are log-probabilities: energy is 0 for every image and tells nothing, and "
            "max_logit is that of msp. Return what enters the last softmax to have both"
        )


def _is_matrix(value: Any, images: int | None) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim == _MATRIX_DIMENSIONS
        and value.shape[1] > 0
        and images in {None, value.shape[0]}
    )


def _only_matrix(output: Any, images: int, where: str) -> tuple[str, ...]:
    named = _matrices(output, images)
    if (_LOGITS,) in named:
        return (_LOGITS,)
    if len(named) == 1:
        return named[0]
    problem = "none of it" if not named else f"each of {', '.join(map('.'.join, named))}"
    action = f"model.output: {'.'.join(named[0])}" if named else "model.output: NAME"
    raise ModelError(
        f"the model returned {_shown(output)} for {images} images, and {problem} may be the "
        "logits, a floating-point matrix with one row an image",
        where,
        f"Say where the logits are, as in {action}, or have the model return them alone",
    )


def _matrices(value: Any, images: int, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all matrices of so many rows in nested tuples, dicts and the like."""
    if _is_matrix(value, images):
        return [path]
    if len(path) == _DEEPEST:
        return []
    return [
        found for name, part in _parts(value) for found in _matrices(part, images, (*path, name))
    ]


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), part) for name, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return [(str(number), part) for number, part in enumerate(value)]
    if isinstance(value, torch.Tensor | str | int | float | bool | None):
        return []
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _part(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value[name] if name in value else value[int(name)]
    if isinstance(value, list | tuple) and re.fullmatch(r"-?\d+", name):
        return value[int(name)]
    if isinstance(value, torch.Tensor):
        raise TypeError(name)
    return getattr(value, name)


def _parsed(path: str, output: Any, images: int) -> tuple[str, ...]:
    steps = tuple(path.split("."))
    found = picked(output, steps)
    if not _is_matrix(found, images):
        raise ModelError(
            f"the model returned {_shown(output)}, and its {path} is {_shown(found)}, expected "
            f"floating-point logits of shape ({images}, classes)",
            "model.output",
            "Name the part that holds the logits",
        )
    return steps


def _shown(value: Any, depth: int = 1) -> str:
    if isinstance(value, torch.Tensor):
        size = "x".join(map(str, value.shape))
        return f"a tensor {size} of {str(value.dtype).removeprefix('torch.')}"
    name = type(value).__name__
    parts = _parts(value)
    if not parts or depth > _DEEPEST:
        return name
    listed = ", ".join(f"{key}: {_shown(part, depth + 1)}" for key, part in parts[:_LISTED])
    more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return f"{name} ({listed}{more})"
