"""What a calibration tells the drift monitor."""

import pytest

from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw
from nap_stream.drift.records import CalibrationFacts

LAW, SMALL = FlagRateLaw(5, 100), FlagRateLaw(1, 38)
TAILS = ((LAW,),) * len(TAIL_EVENTS)


@pytest.mark.parametrize(
    ("per_class", "laws"),
    [
        (False, ()),
        (False, (SMALL,)),
        (False, (SMALL, LAW)),
        (True, (LAW, SMALL)),
        (True, (SMALL, SMALL)),
        (True, (FlagRateLaw(5, 101),)),
    ],
)
def test_calibration_facts_refuse_laws_of_other_groups(
    per_class: bool, laws: tuple[FlagRateLaw, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected distinct laws|of 100 images"):
        CalibrationFacts(0.05, 100, per_class, laws, 2, TAILS, "c", "m")


@pytest.mark.parametrize(("groups", "tails"), [(1, TAILS), (0, TAILS), (2, TAILS[1:]), (2, ())])
def test_calibration_facts_refuse_tails_and_groups_that_are_not_all(
    groups: int, tails: tuple[tuple[FlagRateLaw, ...], ...]
) -> None:
    with pytest.raises(ValueError, match=r"tails, . groups of 2"):
        CalibrationFacts(0.05, 138, True, (SMALL, LAW), groups, tails, "c", "m")


def test_more_groups_than_laws_have_equal_ones() -> None:
    facts = CalibrationFacts(0.05, 1_000, True, (SMALL, LAW), 10, (*TAILS[1:], ()), "c", "m")
    assert facts.groups == 10
    assert facts.tail_laws[-1] == ()
