"""Which rows of a stream of outputs are no logits, or not of their features, told row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nap_stream.core.score_specs import Head
from nap_stream.model.elsewhere import are_of_head
from nap_stream.model.output import (
    ENOUGH_IMAGES,
    PROBABILITIES,
    SUM_TOLERANCE,
    OutputFacts,
    WrongKind,
    not_of_one,
    wrong_kind,
)
from nap_stream.settings.schema import OutputKind

_OTHER_HEAD = (
    "features @ weight.T + bias of model.elsewhere.head is not the logits. Give the layer that "
    "makes the logits, and as features what enters it; or leave it out"
)
_SLACK = 1e-2
"""How far probabilities may lie outside [0, 1], and log-probabilities above 0."""


@dataclass(slots=True, eq=False)
class KindCheck:
    """Says which rows of logits are none: probabilities, votes and the like. For one thread.

    Without a kind, rows are looked at, as calibration looks at images, until 20 one after the other
    are logits; then no more, since by chance a row may look like anything. Until then each row that
    sums to one is refused by itself; of other kinds 20 rows tell, and all are refused from there
    until they are others. With a kind, each row must be of it.
    """

    kind: OutputKind | None
    _parts: list[OutputFacts] = field(default_factory=list)
    _problem: str | None = None
    _is_settled: bool = False

    def __call__(self, outputs: NDArray[np.float32]) -> Sequence[str | None]:
        """What is wrong with each of at least one finite row, (n, K)."""
        if self.kind is not None:
            return _of_kind(outputs, self.kind)
        if self._is_settled:
            return [None] * len(outputs)
        are_shares = _are_shares(outputs)
        if are_shares.any():
            self._parts = []
        behind = int(np.flatnonzero(are_shares)[-1]) + 1 if are_shares.any() else 0
        if behind < len(outputs):
            self._look_at(outputs[behind:])
        return [_text(PROBABILITIES) if share else self._problem for share in are_shares.tolist()]

    def _look_at(self, outputs: NDArray[np.float32]) -> None:
        self._parts.append(OutputFacts.of(outputs))
        facts = OutputFacts.join(self._parts)
        if facts is None or facts.images < ENOUGH_IMAGES:
            return
        wrong = wrong_kind(facts, None)
        self._problem = None if wrong is None else _text(wrong)
        self._parts, self._is_settled = [], wrong is None


@dataclass(slots=True, eq=False)
class HeadCheck:
    """Says which rows' logits are not what the last linear layer makes of their features.

    Rows are looked at until 20 one after the other are; then no more. For one thread.
    """

    head: Head
    _agreeing: int = 0

    def __call__(
        self, features: NDArray[np.float32], logits: NDArray[np.float32]
    ) -> Sequence[str | None]:
        """What is wrong with each of at least one finite row, (n, D) and (n, K)."""
        if self._agreeing >= ENOUGH_IMAGES:
            return [None] * len(logits)
        is_other = ~are_of_head(self.head, features, logits)
        behind = int(np.flatnonzero(is_other)[-1]) + 1 if is_other.any() else 0
        self._agreeing = len(logits) - behind + (0 if behind else self._agreeing)
        return [_OTHER_HEAD if other else None for other in is_other.tolist()]


def _are_shares(outputs: NDArray[np.float32]) -> NDArray[np.bool_]:
    sums = outputs.sum(axis=1, dtype=np.float64)
    found: NDArray[np.bool_] = (outputs.min(axis=1) >= 0) & (np.abs(sums - 1) <= SUM_TOLERANCE)
    return found


def _of_kind(outputs: NDArray[np.float32], kind: OutputKind) -> Sequence[str | None]:
    low, high = outputs.min(axis=1), outputs.max(axis=1)
    is_outside = is_other = np.zeros(len(outputs), np.bool_)
    if kind in {"probabilities", "sigmoid"}:
        is_outside = (low < -_SLACK) | (high > 1 + _SLACK)
    elif kind == "log_probabilities":
        is_outside = high > _SLACK
    # A single output is that of the second of two classes.
    if outputs.shape[1] > 1 and kind in {"probabilities", "log_probabilities"}:
        shares = outputs.astype(np.float64)
        sums = (np.exp(np.minimum(shares, 1)) if kind == "log_probabilities" else shares).sum(
            axis=1
        )
        is_other = np.abs(np.log(np.maximum(sums, np.finfo(np.float64).tiny))) > SUM_TOLERANCE
    return [
        f"model.output_kind is {kind}, and values lie in [{low[row]:.3g}, {high[row]:.3g}]"
        if is_outside[row]
        else _text(not_of_one(kind))
        if is_other[row]
        else None
        for row in range(len(outputs))
    ]


def _text(wrong: WrongKind) -> str:
    return f"{wrong.problem}. {wrong.action}"
