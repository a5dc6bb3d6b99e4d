from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.horizons import UNSTABLE, law, print_laws
from benchmarks.run_lengths import NEVER, average_run_length

HORIZON = 100_000


def _early_or_never(streams: int, early: int) -> NDArray[np.int64]:
    lengths = np.full(streams, NEVER)
    lengths[:early] = 300
    return lengths


def _constant_rate(mean: float, streams: int) -> NDArray[np.int64]:
    lengths = np.random.default_rng(1).geometric(1 / mean, streams)
    return np.where(lengths > HORIZON, NEVER, lengths)


def test_streams_that_alarm_early_or_never_have_no_stable_run_length() -> None:
    found = law(_early_or_never(100, 58), HORIZON, 1_000)
    assert (found.streams, found.early, found.never) == (100, 0.58, 0.42)
    whole = average_run_length(_early_or_never(100, 58), HORIZON).mean
    assert whole / found.half == pytest.approx(2, rel=0.01)
    assert found.stable is False


@pytest.mark.parametrize("mean", [3_000, 60_000])
def test_alarms_at_a_constant_rate_have_a_stable_run_length(mean: float) -> None:
    found = law(_constant_rate(mean, 500), HORIZON, 1_000)
    assert found.stable is True
    assert found.half == pytest.approx(mean, rel=0.2)


def test_alarms_that_come_late_have_a_run_length_once_most_streams_have_alarmed() -> None:
    found = law(np.array([70_000] * 40 + [NEVER] * 10), HORIZON, 1_000)
    assert found.half == np.inf
    assert found.stable is True
    assert law(np.array([70_000] * 30 + [NEVER] * 20), HORIZON, 1_000).stable is False


def test_a_few_alarms_decide_nothing() -> None:
    assert law(_early_or_never(20, 9), HORIZON, 1_000).stable is None
    assert law(_early_or_never(20, 10), HORIZON, 1_000).stable is False
    assert str(law(np.full(3, NEVER), HORIZON, 1_000)) == "too few alarms to tell"


def test_a_difference_by_chance_decides_nothing() -> None:
    lengths = np.array([40_000] * 3 + [80_000] * 7 + [NEVER] * 10)
    found = law(lengths, HORIZON, 1_000)
    assert found.half / average_run_length(lengths, HORIZON).mean > 1.9
    assert found.stable is None


def test_the_table_names_the_horizon_and_says_which_peer_has_no_run_length(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        {
            "name": name,
            "parameter": "default",
            "size": size,
            "run_length": asdict(average_run_length(lengths, HORIZON)),
            "law": asdict(law(lengths, HORIZON, 1_000)),
        }
        for name, size, lengths in (
            ("early", None, _early_or_never(100, 58)),
            ("constant", "500", _constant_rate(3_000, 500)),
        )
    ]
    print_laws(rows)
    early, constant = capsys.readouterr().out.splitlines()[-3:-1]
    assert early.startswith("| early | default | 100 | 58% | 100,000 | 42% | 36,500 | 72,700 (")
    assert early.endswith(f"| {UNSTABLE} |")
    assert constant.startswith("| constant, 500 images | default | 500 | ")
    assert constant.endswith("| yes |")
