import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nap_stream.errors import ModelError
from nap_stream.model.load import load_model
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


@pytest.mark.parametrize(
    ("network", "message"),
    [("TupleNet", "returned tuple for"), ("DictNet", "returned dict for")],
)
def test_an_output_that_is_not_logits(network: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_small(network)


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
    assert refused_weights(tmp_path / "absent.pt") == "there is no such file"


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
    assert "2 not tensors: state_dict, epoch" in refused_weights(path)
    torch.save([1, 2], path)
    assert "holds list" in refused_weights(path)
