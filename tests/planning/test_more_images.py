import dataclasses

import numpy as np
import pytest

from nap_stream.calibration.calibration import Calibration
from nap_stream.core.bounds import upper_flag_rate
from nap_stream.core.conformal import Rule
from nap_stream.core.tails import TAIL_EVENTS, FlagRateLaw, Sides
from nap_stream.planning.expected import of_twice_the_images
from nap_stream.planning.request import PlanRequest, ask
from nap_stream.settings.drift import DriftSettings
from tests.planning.streams import calibration
from tests.support.small_calibration import calibration_of

DRIFT = DriftSettings()


def made(rule: Rule, *sizes: int, copies: int = 1) -> Calibration:
    """A calibration of so many images of each class, whose scores come so many times each."""
    generator = np.random.default_rng(3)
    values = [np.exp(generator.normal(size=(2, size // copies))) for size in sizes]
    energy, nap = np.repeat(np.concatenate(values, axis=1), copies, axis=1)
    classes = np.repeat(np.arange(len(sizes)), sizes)
    return calibration_of(energy.tolist(), nap.tolist(), rule=rule, class_id=classes.tolist())


def asked(of: Calibration) -> PlanRequest:
    return ask(DRIFT, of.facts, of.document.rule.sides)


@pytest.mark.parametrize("sides", Sides)
@pytest.mark.parametrize("alpha", [0.05, 0.08])
@pytest.mark.parametrize("sizes", [(39,), (58,), (100,), (1_011,), (39, 58), (52, 52)])
def test_ranks_are_those_of_a_calibration_with_twice_the_images(
    sides: Sides, alpha: float, sizes: tuple[int, ...]
) -> None:
    rule = Rule(alpha, sides, per_class=len(sizes) > 1)
    twice = made(rule, *(2 * size for size in sizes)).facts

    found = of_twice_the_images(asked(made(rule, *sizes)))

    facts = dataclasses.replace(found.facts, fingerprint=twice.fingerprint)
    assert facts == twice
    assert (found.sides, found.drift) == (sides, DRIFT)
    assert found.plan.flag_rate == ask(DRIFT, twice, sides).plan.flag_rate


def test_the_rank_of_39_images_by_hand() -> None:
    # 0.05 * (39 + 1) = 2, 0.05 * (78 + 1) = 3.95; the flag rate has half of 5 % to miss.
    found = of_twice_the_images(asked(made(Rule(0.05), 39)))

    assert found.facts.flag_rate_laws == (FlagRateLaw(3, 78),)
    assert found.plan.flag_rate == upper_flag_rate(3, 78, 0.975) == pytest.approx(0.0896, abs=1e-4)


def test_a_tail_that_lacked_images_is_tested_then() -> None:
    before = asked(made(Rule(0.05), 39))
    after = of_twice_the_images(before)

    lowest = TAIL_EVENTS[0]
    assert lowest not in {event for event, _ in before.plan.tail_rates}
    assert lowest in {event for event, _ in after.plan.tail_rates}


@pytest.mark.parametrize("sides", Sides)
@pytest.mark.parametrize("copies", [4, 30])
def test_ties_keep_their_share_of_the_ranks(sides: Sides, copies: int) -> None:
    rule = Rule(0.05, sides)
    facts = made(rule, 600, copies=copies).facts
    doubled = of_twice_the_images(ask(DRIFT, facts, sides)).facts

    for before, after in zip(facts.tail_laws, doubled.tail_laws, strict=True):
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert new.size == 2 * old.size
            assert new.flag_rank / (new.size + 1) == pytest.approx(
                old.flag_rank / (old.size + 1), abs=2 / old.size
            )


def test_twice_the_images_lower_the_highest_rate() -> None:
    before = asked(calibration())
    after = of_twice_the_images(before)

    assert (after.facts.size, after.facts.flag_rate_laws) == (4_000, (FlagRateLaw(200, 4_000),))
    assert 0.05 < after.plan.flag_rate < before.plan.flag_rate
    assert len(after.plan.tail_rates) == len(before.plan.tail_rates)
