import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from nap_stream.errors import ConfigError
from nap_stream.evaluation import metrics
from nap_stream.evaluation.metrics import measure
from nap_stream.evaluation.output import plot_calibration
from tests.support.small_calibration import calibration_of


def forget(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    real = importlib.util.find_spec

    def find(name: str) -> ModuleSpec | None:
        return None if name in packages else real(name)

    monkeypatch.setattr(metrics, "find_spec", find)


def test_is_content_where_all_is_installed() -> None:
    metrics.require_evaluate_extra()


def test_names_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "sklearn", "matplotlib")

    with pytest.raises(ConfigError) as caught:
        metrics.require_evaluate_extra()

    assert str(caught.value) == (
        "matplotlib and scikit-learn are not installed. pip install 'nap-stream[evaluate]'"
    )


def test_metrics_are_refused_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "sklearn")

    with pytest.raises(ConfigError, match="scikit-learn is not installed"):
        measure(np.array([1.0]), np.array([0.0]))


def test_pictures_are_refused_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forget(monkeypatch, "matplotlib")

    with pytest.raises(ConfigError, match="matplotlib is not installed"):
        plot_calibration(calibration_of([1.0] * 5, [2.0] * 5), tmp_path / "picture.png")

    assert list(tmp_path.iterdir()) == []
