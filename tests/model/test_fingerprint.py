import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nap_stream.errors import ModelError
from nap_stream.model.weights import fingerprint
from tests.support.small_settings import load_small, small_settings

STATE = {"b": torch.arange(3.0), "a": torch.tensor(7), "none": torch.zeros(0, 2)}


def test_the_same_in_another_process_and_another_order() -> None:
    code = (
        "from tests.support.small_settings import load_small;"
        "print(load_small('SmallNet').fingerprint)"
    )
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert other.stdout.strip() == load_small("SmallNet").fingerprint
    reordered = dict(sorted(STATE.items()))
    settings = small_settings()
    assert fingerprint(settings, STATE) == fingerprint(settings, reordered)
    assert len(fingerprint(settings, STATE)) == 64


def test_memory_layout_does_not_matter() -> None:
    settings, tensor = small_settings(), torch.rand(2, 3, 4, 4)
    relaid = tensor.to(memory_format=torch.channels_last)
    assert fingerprint(settings, {"w": tensor}) == fingerprint(settings, {"w": relaid})


def test_everything_that_decides_the_scores_counts() -> None:
    settings = small_settings()
    preprocessing = settings.preprocessing
    changed = [
        (settings, STATE | {"a": torch.tensor(8)}),
        (settings, STATE | {"a": torch.tensor([7])}),
        (settings, STATE | {"a": torch.tensor(7, dtype=torch.int32)}),
        (settings, {"c" if name == "b" else name: value for name, value in STATE.items()}),
        (small_settings("half"), STATE),
        (small_settings(kwargs={"name": "SmallNet", "seed": 1}), STATE),
        *(
            (small_settings(preprocessing=preprocessing.model_copy(update=change)), STATE)
            for change in (
                {"resize": 9},
                {"crop": 9},
                {"interpolation": "bicubic"},
                {"mean": (0.0, 0.0, 0.0)},
                {"std": (1.0, 1.0, 1.0)},
            )
        ),
    ]
    prints = {fingerprint(*one) for one in changed}
    assert len(prints) == len(changed)
    assert fingerprint(settings, STATE) not in prints


def test_where_weights_and_names_come_from_does_not_count(tmp_path: Path) -> None:
    plain = fingerprint(small_settings(), STATE)
    for change in ({"weights": tmp_path}, {"class_names": ("a",)}, {"python_path": (tmp_path,)}):
        assert fingerprint(small_settings().model_copy(update=change), STATE) == plain


def test_bfloat16_has_bytes() -> None:
    tensor = torch.ones(2, dtype=torch.bfloat16)
    assert fingerprint(small_settings(), {"w": tensor}) != fingerprint(
        small_settings(), {"w": tensor * 2}
    )


def test_what_has_no_stable_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="'extra' is object"):
        fingerprint(small_settings(), {"extra": object()})
