"""The same question of a calibration with twice the images."""

import dataclasses

from nap_stream.core.bounds import FlagRateLaw
from nap_stream.core.conformal import flag_rank
from nap_stream.core.judging import Rule, Sides
from nap_stream.core.tail_events import TAIL_EVENTS, TailEvent
from nap_stream.planning.question import Question, ask


def of_twice_the_images(question: Question) -> Question:
    """Ask the same of twice the images in each group, with the ranks that they would have.

    A tail that a group was too small for is then tested, if its size was all that it lacked.
    """
    facts, sides = question.facts, question.sides
    rule = Rule(facts.alpha, sides)
    sizes = [2 * law.size for law in facts.flag_rate_laws]
    doubled = dataclasses.replace(
        facts,
        size=2 * facts.size,
        flag_rate_laws=tuple(FlagRateLaw(rule.flag_rank(size), size) for size in sizes),
        tail_laws=tuple(
            _upper_laws(event, laws, sides) if event.upper else _lower_laws(event, sizes, sides)
            for event, laws in zip(TAIL_EVENTS, facts.tail_laws, strict=True)
        ),
    )
    return ask(question.drift, doubled, sides)


def _lower_laws(event: TailEvent, sizes: list[int], sides: Sides) -> tuple[FlagRateLaw, ...]:
    ranks = [_rank_outside(event, size, sides) for size in sizes]
    if min(ranks) < 1:
        return ()
    return tuple(FlagRateLaw(rank, size) for rank, size in zip(ranks, sizes, strict=True))


def _upper_laws(
    event: TailEvent, laws: tuple[FlagRateLaw, ...], sides: Sides
) -> tuple[FlagRateLaw, ...]:
    """Tied scores keep the share of ranks that they have: see `nap_stream.core.tail_laws`."""
    doubled = set()
    for law in laws:
        size, outside = 2 * law.size, law.size + 1 - law.flag_rank
        is_tied = outside < _rank_outside(event, law.size, sides)
        rank = 2 * outside if is_tied else _rank_outside(event, size, sides)
        doubled.add(FlagRateLaw(size + 1 - rank, size))
    return tuple(sorted(doubled))


def _rank_outside(event: TailEvent, size: int, sides: Sides) -> int:
    """How many of the ranks of untied scores lie outside the upper tail, or in the lower one."""
    ends = 1 if sides is Sides.ONE else 2
    return ends * flag_rank(event.edge / ends, size)
