from pathlib import Path

import pytest
from pydantic import ValidationError

from nap_stream.core.methods import every_method
from nap_stream.core.score_specs import ScoreParameters
from nap_stream.errors import ConfigError
from nap_stream.settings import ScoringSettings
from nap_stream.settings_loader import load_scoring_settings


def test_scoring_parameters_are_those_of_the_base_scores() -> None:
    assert ScoringSettings().parameters() == ScoreParameters()
    changed = ScoringSettings(knn_k=3, fit_limit=40, react_percentile=0.8, scores=("knn",))
    assert changed.parameters() == ScoreParameters(knn_k=3, knn_bank_size=40, react_percentile=0.8)


def test_fewer_images_to_fit_on_than_neighbours_are_refused() -> None:
    with pytest.raises(ValidationError, match="knn_k must be below fit_limit"):
        ScoringSettings(knn_k=10, fit_limit=10)
    assert ScoringSettings(knn_k=10, fit_limit=11).fit_limit == 11


def test_every_method_is_a_setting() -> None:
    for method in every_method():
        assert ScoringSettings(method=str(method)).method == str(method)


def test_an_unknown_method_in_a_file_is_named_once_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("model:\n  factory: a:b\nscoring:\n  method: knnn\n")
    with pytest.raises(ConfigError) as caught:
        load_scoring_settings(path, {})
    message = str(caught.value)
    assert caught.value.where == f"{path}:4, key method"
    assert message.count("knnn") == 1
    assert "expected one of nap, msp" in message
    assert "\n" not in message
