import numpy as np
import pytest

from nap_stream.evaluation.tables import EvaluationTable, evaluate_scores

# Names as users may give them: Markdown, TeX, markup of rich, a line break.
AWKWARD_METHOD = "nap_e|[bold]$x_1$"
AWKWARD_SET = "hand|signs\n*two*"


@pytest.fixture(scope="session")
def table() -> EvaluationTable:
    """Three methods on two sets: AUROC 1, 0.5 and 0 on the textures; the last wins on the signs."""
    ascending = np.arange(40.0)
    inside = {"energy": ascending, "msp": np.zeros(40), AWKWARD_METHOD: ascending}
    outside = {
        "textures": {
            "energy": np.full(20, -1.0),
            "msp": np.zeros(20),
            AWKWARD_METHOD: np.full(20, 99.0),
        },
        AWKWARD_SET: {
            "energy": np.full(10, 9.5),
            "msp": np.full(10, 1.0),
            AWKWARD_METHOD: np.full(10, 0.5),
        },
    }
    return evaluate_scores(
        inside,
        outside,
        in_distribution="cifar10_test",
        resamples=50,
        seed=7,
        context={"model": "a|b", "versions": {"torch": "2.15"}},
    )
