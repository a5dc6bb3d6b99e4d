import dataclasses
import time

import pytest

from nap_stream.core.bounds import FlagRateLaw, flag_limit
from nap_stream.core.conformal import flag_rank
from nap_stream.drift.limits import window_limits
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings
from tests.support.summaries import FACTS, PER_CLASS_FACTS


def facts(size: int, rank: int) -> CalibrationFacts:
    laws = (FlagRateLaw(rank, size),)
    return dataclasses.replace(FACTS, size=size, flag_rate_laws=laws)


def test_limits_are_those_of_the_reference_table() -> None:
    limits = window_limits(DriftSettings(), facts(2_000, 100))
    firing, resolving = limits(1_000)
    assert firing == 80
    assert 50 < resolving < firing


def test_the_rank_decides_not_alpha() -> None:
    two_sided = facts(59, 2)
    one_sided = facts(59, 3)
    settings = DriftSettings()
    assert window_limits(settings, two_sided)(1_000) < window_limits(settings, one_sided)(1_000)


def test_per_class_each_limit_is_that_of_the_class_with_the_highest() -> None:
    """38 images have the fatter far tail, 200 the higher rate: each decides one limit."""
    settings = DriftSettings(false_alarm_probability=1e-3, resolve_probability=0.4)
    rank_1 = [flag_limit(1_000, 1, 38, probability) for probability in (1e-3, 0.4)]
    rank_10 = [flag_limit(1_000, 10, 200, probability) for probability in (1e-3, 0.4)]
    assert (rank_1, rank_10) == ([170, 25], [116, 53])
    assert window_limits(settings, PER_CLASS_FACTS)(1_000) == (170, 53)


def test_hundreds_of_classes_are_quick() -> None:
    laws = tuple(FlagRateLaw(flag_rank(0.05, m), m) for m in range(19, 319))
    many = CalibrationFacts(0.05, sum(law.size for law in laws), True, laws, "c", "m")
    limits = window_limits(DriftSettings(), many)
    started = time.perf_counter()
    # Of 19 images, one rank of 20 is flagged.
    assert limits(1_001)[0] == flag_limit(1_001, 1, 19, 1e-3)
    assert time.perf_counter() - started < 0.1


def test_a_window_that_cannot_fire_is_refused() -> None:
    with pytest.raises(ConfigError, match="can never fire") as error:
        window_limits(DriftSettings(window_records=1), FACTS)
    assert error.value.where == "drift.window_records"
