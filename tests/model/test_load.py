import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nap_stream.core.base_scores import energy, max_logit, msp
from nap_stream.core.prior import nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.model.forward import BatchScores
from nap_stream.model.load import load_model
from nap_stream.model.weights import fingerprint
from tests.support.small_calibration import scorer_of
from tests.support.small_models import SIZE, SmallNet, by_name
from tests.support.small_settings import CPU, load_small, small_settings


def test_the_model_is_ready_to_score() -> None:
    loaded = load_small("DropoutNet", class_names=("a", "b", "c"))
    assert not any(module.training for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.device == CPU
    assert loaded.feature_site.module == "pool"


def test_classes_without_names_are_numbered() -> None:
    assert load_small("SmallNet").class_names == ("0", "1", "2")


def test_a_factory_below_a_class() -> None:
    assert load_model(small_settings("Fixed.build"), CPU).class_names == ("0", "1", "2")


def test_bfloat16_weights_get_a_bfloat16_input() -> None:
    loaded = load_model(small_settings("half"), CPU)
    scores = scorer_of(loaded)(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    assert scores.is_finite().all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = by_name("SmallNet", seed=5).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_small("SmallNet", weights=path)
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_factory_in_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own_network_of_a_user.py").write_text(
        "from tests.support.small_models import by_name\n"
        "def build():\n"
        "    import own_helper_of_a_user\n"
        "    return by_name('SmallNet')\n"
    )
    (tmp_path / "own_helper_of_a_user.py").touch()
    settings = small_settings(python_path=(tmp_path,)).model_copy(
        update={"factory": "own_network_of_a_user:build", "kwargs": {}}
    )
    before = list(sys.path)
    assert load_model(settings, CPU).class_names == ("0", "1", "2")
    assert sys.path == before


def test_a_factory_that_breaks_on_import(tmp_path: Path) -> None:
    (tmp_path / "broken_network_of_a_user.py").write_text("import no_such_package_anywhere\n")
    settings = small_settings(python_path=(tmp_path,)).model_copy(
        update={"factory": "broken_network_of_a_user:build"}
    )
    with pytest.raises(ModelError, match=r"no_such_package_anywhere.*model\.python_path"):
        load_model(settings, CPU)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_package_anywhere:build", "cannot be imported.*ModuleNotFoundError"),
        ("tests.support.small_models:Missing", "has no 'Missing'"),
        ("tests.support.small_models:NOT_CALLABLE", "int, which cannot be called"),
        ("tests.support.small_models:raising", "RuntimeError: no such variant.*model.kwargs"),
        ("tests.support.small_models:not_a_module", "returned function, expected a torch.nn"),
    ],
)
def test_a_wrong_factory(factory: str, message: str) -> None:
    settings = small_settings().model_copy(update={"factory": factory, "kwargs": {}})
    with pytest.raises(ModelError, match=message) as caught:
        load_model(settings, CPU)
    assert factory in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_that_the_factory_does_not_take() -> None:
    settings = small_settings(kwargs={"name": "SmallNet", "depth": 3})
    with pytest.raises(ModelError, match="unexpected keyword argument 'depth'"):
        load_model(settings, CPU)


def test_values_of_arguments_are_not_shown() -> None:
    settings = small_settings("raising", kwargs={"token": "open sesame"})
    with pytest.raises(ModelError, match="token") as caught:
        load_model(settings, CPU)
    assert "open sesame" not in str(caught.value)


def test_an_input_that_the_model_does_not_take() -> None:
    preprocessing = small_settings().preprocessing.model_copy(update={"crop": SIZE + 1})
    with pytest.raises(ModelError, match=r"shape \(2, 3, 9, 9\).*model.preprocessing.crop"):
        load_small("FlattenNet", preprocessing=preprocessing)


def test_as_many_names_as_logits(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 class names, and the model has 3 logits"):
        load_small("SmallNet", class_names=("a", "b"))
    path = tmp_path / "names.txt"
    path.write_text("cat\ngreat dane\n")
    with pytest.raises(ModelError, match=f"{path}.*2 class names"):
        load_small("SmallNet", class_names_file=path)
    path.write_text("cat\ngreat dane\nbird\n\n")
    loaded = load_small("SmallNet", class_names_file=path)
    assert loaded.class_names == ("cat", "great dane", "bird")


def test_a_file_of_names_that_cannot_be_read(tmp_path: Path) -> None:
    settings = small_settings().model_copy(update={"class_names_file": tmp_path / "absent"})
    with pytest.raises(ModelError, match=r"absent.*cannot be read"):
        load_model(settings, CPU)


def refused_weights(path: Path) -> str:
    settings = small_settings().model_copy(update={"weights": path})
    with pytest.raises(ModelError) as caught:
        load_model(settings, CPU)
    assert str(path) in str(caught.value)
    return caught.value.problem


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = SmallNet(classes=5).state_dict()
    state["extra.weight"] = state.pop("features.0.bias")
    save_file(state, path)
    assert refused_weights(path) == (
        "the weights do not fit the model: 1 missing: features.0.bias; "
        "1 unexpected: extra.weight; 2 of another shape: "
        "head.weight (5, 4) (expected (3, 4)), head.bias (5,) (expected (3,))"
    )


def test_few_of_many_names_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({f"layer{index}": torch.zeros(1) for index in range(9)}, path)
    assert "9 unexpected: layer0, layer1, layer2 and 6 more" in refused_weights(path)


def test_weights_that_are_absent(tmp_path: Path) -> None:
    found = refused_weights(tmp_path / "absent.pt")
    assert found == f"there is no absent.pt in {tmp_path}, which is empty"
    (tmp_path / "absence.pt").touch()
    assert refused_weights(tmp_path / "absent.pt").endswith("; the closest is absence.pt")
    found = refused_weights(tmp_path / "models" / "new" / "absent.pt")
    assert found == f"there is no absent.pt, and no folder {tmp_path / 'models'}"


@pytest.mark.parametrize("name", ["noise.safetensors", "noise.pt", "empty.safetensors", "empty.pt"])
def test_weights_that_are_no_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if name.startswith("empty") else b"not weights at all" * 9)
    assert "cannot be read as weights" in refused_weights(path)


class Unpickled:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["NAP_STREAM_TEST_TRACE"],)


def test_weights_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "was-run"
    monkeypatch.setenv("NAP_STREAM_TEST_TRACE", str(trace))
    path = tmp_path / "weights.pt"
    torch.save({"head.weight": Unpickled()}, path)
    assert "cannot be read as weights" in refused_weights(path)
    assert not trace.exists()


def test_a_file_that_holds_more_than_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": by_name("SmallNet").state_dict(), "epoch": 3}, path)
    loaded = load_small("SmallNet", weights=path)
    assert loaded.notes == ("the weights are those under 'state_dict' in the file",)
    torch.save([1, 2], path)
    assert "holds list" in refused_weights(path)


def batch(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = (count, 3, SIZE, SIZE)
    return torch.randint(0, 255, size, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("network", ["SmallNet", "InPlaceNet"])
def test_all_scores_of_one_pass(network: str) -> None:
    loaded = load_small(network)
    scores = scorer_of(loaded)(batch(5))
    with torch.inference_mode():
        x = loaded.normalise(batch(5))
        logits = loaded.module(x)
        maps = loaded.module.get_submodule("features")(x).relu()
    assert scores.class_id.tolist() == logits.argmax(1).tolist()
    expected = {
        "nap": nap(maps),
        "msp": msp(logits),
        "max_logit": max_logit(logits),
        "energy": energy(logits),
    }
    assert scores.values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(scores.values[name], value.numpy())
    assert scores.class_id.dtype == np.int64
    assert {column.dtype for column in scores.values.values()} == {np.dtype(np.float32)}


def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other() -> None:
    images = batch(3)
    scorer = scorer_of(load_small("OverflowNet"))
    clean = scorer(images)
    images[1, 0, 0, 0] = 255
    # White is exactly 1 only without normalisation.
    plain = load_small("OverflowNet").preprocessing.model_copy(
        update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    )
    spoilt = scorer_of(load_small("OverflowNet", preprocessing=plain))(images)
    assert clean.is_finite().all()
    assert spoilt.is_finite().tolist() == [True, False, True]
    assert np.isnan(spoilt.values["energy"][1])


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, SIZE, SIZE),
        torch.zeros(2, 3, SIZE, SIZE + 1, dtype=torch.uint8),
        torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
    ],
)
def test_refuses_a_wrong_batch(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected a uint8 batch"):
        scorer_of(load_small("SmallNet"))(wrong)


def test_a_model_that_drops_the_batch_dimension() -> None:
    scorer = scorer_of(load_small("SqueezeNet"))
    assert scorer(batch(2)).class_id.shape == (2,)
    with pytest.raises(ModelError, match="one row of logits an image"):
        scorer(batch(1))


def test_a_map_that_is_not_reached() -> None:
    loaded = load_small("SmallNet")
    elsewhere = dataclasses.replace(loaded.feature_site, call=7)
    with pytest.raises(FeatureMapError, match="did not reach"):
        scorer_of(dataclasses.replace(loaded, feature_site=elsewhere))(batch(1))


def test_scores_have_one_shape() -> None:
    three, two = np.zeros(3, np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="one shape"):
        BatchScores(np.zeros(3, np.int64), {"nap": three, "energy": two})


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


def test_a_fingerprint_of_before_there_was_scaled_decoding() -> None:
    golden = "feb5bc0333fd3d1d23f7d65202dbe0163b19e16184fca618257a2885cdbd5b77"
    assert fingerprint(small_settings(), STATE) == golden


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
                {"scaled_decoding": True},
                {"bits": 12},
                {"exif_orientation": "apply"},
                {"channel_order": "bgr"},
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
