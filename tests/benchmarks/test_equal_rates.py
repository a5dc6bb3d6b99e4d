from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.equal_rates import Setting, print_comparison
from benchmarks.horizons import UNSTABLE, law
from benchmarks.run_lengths import NEVER, average_run_length, mean_delay

HORIZON = 10_000
SETTING = Setting(1_000, 0.95, 200, (500,), (0.5,), 100, 400)


def _row(name: str, lengths: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "name": name,
        "parameter": "default",
        "size": None,
        "run_length": asdict(average_run_length(lengths, HORIZON)),
        "law": asdict(law(lengths, HORIZON, 100)),
        "delays": [asdict(mean_delay(np.array([300, 310]), 400))],
        "missed": [0.0],
    }


def test_no_verdict_without_a_stable_run_length_and_a_mark_where_thresholds_are_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    constant = np.random.default_rng(1).geometric(1 / 1_000, 200)
    rows = [
        _row("constant", constant),
        _row("seldom", np.where(constant > 500, NEVER, 20 * constant)),
        _row("early", np.where(np.arange(100) < 70, 10, NEVER)),
        _row("few", np.array([400, 5_000, NEVER])),
    ]
    print_comparison(SETTING, rows, np.random.default_rng(1))
    lines = [line for line in capsys.readouterr().out.splitlines() if "default" in line]
    constant_line, seldom_line, early_line, few_line = lines
    assert constant_line.endswith("sooner |")
    assert "†" not in constant_line
    assert seldom_line.count("†") == 2
    assert seldom_line.count("sooner") == 2
    assert f"| {UNSTABLE}; " in early_line
    assert "at a horizon of 10,000 |" in early_line
    assert "sooner" not in early_line
    assert "†" in early_line
    assert "| too few alarms to tell; " in few_line
    assert "sooner" not in few_line
