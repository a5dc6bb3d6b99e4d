import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nap_stream.errors import ModelError
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.support.small_settings import CPU, PLAIN

transformers = pytest.importorskip("transformers")

PREPROCESSING = PreprocessingSettings(resize=32, crop=32)
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
    "id2label": {0: "cat", 1: "dog", 2: "bird"},
}


def load(**changes: Any) -> LoadedModel:
    return load_model(ModelSettings(preprocessing=PREPROCESSING, **PLAIN, **changes), CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**RESNET)
    model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_a_whole_model(folder: Path) -> None:
    loaded = load(weights=folder)
    assert loaded.class_names == ("cat", "dog", "bird")
    assert loaded.output.path == ("logits",)
    assert loaded.feature_site.shape == (8, 4, 4)
    assert loaded.head is not None
    images = torch.randn(2, 3, 32, 32)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(images).logits
    torch.testing.assert_close(loaded.forward(images).logits, expected)
    assert load(weights=folder, class_names=("a", "b", "c")).class_names == ("a", "b", "c")


def test_the_same_folder_elsewhere_is_the_same_model(folder: Path) -> None:
    before = load(weights=folder).fingerprint
    moved = folder.rename(folder.with_name("moved"))
    assert load(weights=moved).fingerprint == before
    edit(moved / "config.json", hidden_act="gelu")
    assert load(weights=moved).fingerprint != before


@pytest.mark.parametrize(
    "config", [{"config": RESNET}, RESNET], ids=["as a mapping", "as arguments"]
)
def test_a_factory_of_a_configuration(config: dict[str, Any], folder: Path) -> None:
    factory = "transformers:AutoModelForImageClassification.from_config"
    loaded = load(factory=factory, kwargs=config, weights=folder)
    assert loaded.class_names == ("cat", "dog", "bird")
    images = torch.randn(2, 3, 32, 32)
    expected = load(weights=folder).forward(images).logits
    torch.testing.assert_close(loaded.forward(images).logits, expected)


def test_the_configuration_of_a_folder(folder: Path) -> None:
    factory = "transformers:ResNetForImageClassification"
    loaded = load(factory=factory, kwargs={"config": str(folder)})
    assert loaded.class_names == ("cat", "dog", "bird")


def test_a_factory_of_a_folder(folder: Path) -> None:
    factory = "transformers:AutoModelForImageClassification.from_pretrained"
    kwargs = {"pretrained_model_name_or_path": str(folder)}
    assert load(factory=factory, kwargs=kwargs).class_names == ("cat", "dog", "bird")


def test_names_that_say_nothing_are_numbers(folder: Path) -> None:
    edit(folder / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert load(weights=folder).class_names == ("0", "1", "2")


def refused(**changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["microsoft/resnet-18", "", "/no/such/folder"])
def test_nothing_is_downloaded(name: str) -> None:
    factory = "transformers:AutoModelForImageClassification.from_pretrained"
    kwargs = {"pretrained_model_name_or_path": name} if name else {}
    assert "nothing is downloaded" in refused(factory=factory, kwargs=kwargs)
    other = "transformers:AutoModelForImageClassification.from_config"
    assert "from_config" in refused(factory=other, kwargs={"config": name or "x/y"})


def test_code_of_a_folder_is_not_run(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')\n")
    edit(
        folder / "config.json",
        auto_map={"AutoModelForImageClassification": "own.Net", "AutoConfig": "own.Config"},
    )
    assert "code of its own" in refused(weights=folder)
    factory = "transformers:AutoModelForImageClassification.from_pretrained"
    kwargs = {"pretrained_model_name_or_path": str(folder), "trust_remote_code": True}
    assert "code of its own" in refused(factory=factory, kwargs=kwargs)
    assert "code of its own" in refused(
        factory="transformers:AutoModelForImageClassification.from_config",
        kwargs={"config": str(folder)},
    )
    assert not (folder / "was-run").exists()


def test_pickles_are_not_read(folder: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    assert "safetensors alone" in refused(weights=folder)


def test_a_head_that_would_be_made_up(folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)
    backbone = {name: t for name, t in state.items() if not name.startswith("classifier")}
    save_file(backbone, weights, {"format": "pt"})
    assert "made up at random (2 missing: classifier" in refused(weights=folder)
    other = {
        name: torch.zeros(7, *t.shape[1:]) for name, t in state.items() if name not in backbone
    }
    save_file(backbone | other, weights, {"format": "pt"})
    assert "made up at random (2 of another shape: " in refused(weights=folder)


def test_weights_in_parts(folder: Path) -> None:
    before = load(weights=folder).fingerprint
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: state[name] for name in own}, folder / part, {"format": "pt"})
    where = {name: part for part, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert load(weights=folder).fingerprint == before
    index.write_text(json.dumps({"weight_map": {"x": "../../other.safetensors"}}))
    assert "outside of the folder" in refused(weights=folder)
    index.write_text("[]")
    assert "cannot be read" in refused(weights=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "config.json cannot be read"),
        ("[]", "holds no keys"),
        ("{}", "cannot be loaded"),
        ('{"model_type": "bert"}', "cannot be loaded|made up"),
        ('{"model_type": "no-such-type"}', "cannot be loaded"),
    ],
)
def test_a_configuration_that_is_none(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load(weights=folder)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "no config.json" in refused(weights=tmp_path)
