import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nap_stream.errors import ModelError
from nap_stream.model.found_preprocessing import (
    FoundPreprocessing,
    disagreements,
    doubts,
    found_preprocessing,
    resolved,
)
from nap_stream.model.load import load_model
from nap_stream.settings.load import load_model_settings
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.support.small_settings import CPU, PLAIN, small_settings

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
STATED = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}


def of_folder(folder: Path, **config: Any) -> FoundPreprocessing:
    (folder / "preprocessor_config.json").write_text(json.dumps(STATED | config))
    found = found_preprocessing(ModelSettings(weights=folder))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "resize", "crop"),
    [
        ({"size": {"height": 224, "width": 224}}, (224, 224), 224),
        ({"size": 384}, (384, 384), 384),
        ({"size": {"height": 192, "width": 256}}, (192, 256), (192, 256)),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, 256, 224),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            256,
            224,
        ),
        (
            {"do_resize": False, "size": 8, "do_center_crop": True, "crop_size": 224},
            None,
            224,
        ),
        (
            {"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessor"},
            256,
            224,
        ),
        (
            {
                "size": {"shortest_edge": 224},
                "crop_pct": 0.875,
                "feature_extractor_type": "ConvNextFeatureExtractor",
            },
            256,
            224,
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),
        (
            {
                "size": {"shortest_edge": 224},
                "crop_pct": 0.9,
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "image_processor_type": "PoolFormerImageProcessor",
            },
            248,
            224,
        ),
        (
            {"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextImageProcessor"},
            (384, 384),
            384,
        ),
    ],
)
def test_a_folder_of_hugging_face(tmp_path: Path, config: Any, resize: Any, crop: Any) -> None:
    found = of_folder(tmp_path, **config)
    assert found.values == {"resize": resize, "crop": crop, "interpolation": "bicubic", **HALF}
    assert found.problem == ""
    assert found.source.endswith("/preprocessor_config.json")
    PreprocessingSettings(**found.values)


def test_without_normalising(tmp_path: Path) -> None:
    found = of_folder(tmp_path, size=32, do_normalize=False)
    assert (found.values["mean"], found.values["std"]) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("config", "missing", "problem"),
    [
        ({"size": 32, "resample": 1}, {"interpolation"}, "interpolation 1"),
        ({"size": {"shortest_edge": 256}}, {"resize", "crop"}, "a size that is not fixed"),
        ({"size": 32, "rescale_factor": 1 / 127.5}, {"mean", "std"}, "scaled by 0.00784314"),
        ({"size": 32, "image_mean": [0.5], "image_std": [0.5]}, {"mean", "std"}, "mean (0.5,)"),
        ({"size": 32, "image_std": [0.5, 0, 0.5]}, {"std"}, "std (0.5, 0, 0.5)"),
        ({"size": -1}, {"resize", "crop"}, "crop -1"),
        ({"size": 32, "do_rescale": False}, {"mean", "std"}, "scaled by 1 and not by 1/255"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, config: Any, missing: set[str], problem: str) -> None:
    found = of_folder(tmp_path, **config)
    assert {"resize", "crop", "interpolation", "mean", "std"} - found.values.keys() == missing
    assert problem in found.problem
    settings = ModelSettings(weights=tmp_path, preprocessing={"from_model": True})
    with pytest.raises(ModelError, match=f"states .*{', '.join(sorted(missing))[:4]}"):
        resolved(settings, nn.Identity())


def stating(size: Any) -> str:
    return json.dumps(STATED | {"size": size})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"image_mean": 3}', '{"image_mean": [1]}', json.dumps(STATED)),
        *(
            stating({"longest_edge": 9}),
            stating({"shortest_edge": "x"}),
            stating([9]),
            stating("9"),
        ),
    ],
)
def test_a_file_that_states_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: the file states no"):
        found_preprocessing(ModelSettings(weights=tmp_path))


@pytest.mark.parametrize(
    ("weights", "resize"),
    [("IMAGENET1K_V1", 256), ("DEFAULT", 232), ("ResNet50_Weights.IMAGENET1K_V2", 232)],
)
def test_weights_of_torchvision(weights: str, resize: int) -> None:
    settings = ModelSettings(factory="torchvision.models:resnet50", kwargs={"weights": weights})
    found = found_preprocessing(settings)
    assert found is not None
    assert found.values == {
        "resize": resize,
        "crop": 224,
        "interpolation": "bilinear",
        **IMAGENET,
    }


@pytest.mark.parametrize("weights", [None, "NO_SUCH_WEIGHTS"])
def test_torchvision_without_weights_states_nothing(weights: str | None) -> None:
    settings = ModelSettings(factory="torchvision.models:resnet50", kwargs={"weights": weights})
    assert found_preprocessing(settings) is None


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18.a1_in1k", 224), ("vit_tiny_patch16_224", 224), ("vit_tiny_patch16_384", 384)],
)
def test_timm(name: str, side: int) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model(name)
    settings = ModelSettings(factory="timm:create_model", kwargs={"model_name": name})
    found = found_preprocessing(settings, module)
    assert found is not None
    assert found.problem == ""
    stated = timm.data.resolve_model_data_config(module)
    assert found.values == {
        "resize": int(side / stated["crop_pct"]),
        "crop": side,
        "interpolation": stated["interpolation"],
        "mean": stated["mean"],
        "std": stated["std"],
    }


def test_from_model_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = tmp_path / "model.yaml"
    start = "factory: timm:create_model\nkwargs: {model_name: resnet10t, num_classes: 3}\n"
    path.write_text(start + "preprocessing: from_model\nprecision: float32\n")
    torch.manual_seed(0)
    loaded = load_model(load_model_settings(path, {}), CPU)
    assert not loaded.preprocessing.from_model
    assert loaded.preprocessing.interpolation == "bicubic"
    assert loaded.notes == ()
    written = loaded.preprocessing.model_dump(mode="json")
    path.write_text(start + f"preprocessing: {json.dumps(written)}\nprecision: float32\n")
    torch.manual_seed(0)
    again = load_model(load_model_settings(path, {}), CPU)
    assert again.fingerprint == loaded.fingerprint
    path.write_text(start + "preprocessing: {from_model: true, crop: 64}\n")
    given = load_model(load_model_settings(path, {}), CPU)
    assert (given.preprocessing.crop, given.preprocessing.interpolation) == (64, "bicubic")
    assert len(given.notes) == 1
    assert "crop is 64, the model's 176" in given.notes[0]


def test_a_model_that_states_nothing() -> None:
    settings = ModelSettings(
        factory="tests.support.small_models:SmallNet",
        preprocessing={"from_model": True},
        **PLAIN,
    )
    with pytest.raises(ModelError, match="states no preprocessing, and resize, crop"):
        load_model(settings, CPU)


def test_a_file_that_states_nothing_does_not_stop_a_model_of_another_preprocessing(
    tmp_path: Path,
) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    settings = small_settings().model_copy(
        update={"kwargs": {"name": "SmallNet", "pretrained_model_name_or_path": tmp_path}}
    )
    (said,) = doubts(settings, settings.preprocessing, nn.Identity())
    assert said.startswith(f"{tmp_path}/preprocessor_config.json: the file states no preprocessing")


def test_what_is_stated_does_not_go_with_what_is_given(tmp_path: Path) -> None:
    of_folder(tmp_path, do_resize=False, size=8, do_center_crop=True, crop_size=8)
    given = {"from_model": True, "scaled_decoding": True}
    with pytest.raises(ModelError, match=r"does not go with what is given .*needs resize"):
        resolved(ModelSettings(weights=tmp_path, preprocessing=given), nn.Identity())


def test_a_module_whose_configuration_is_not_one_of_timm() -> None:
    pytest.importorskip("timm")
    module = nn.Identity()
    vars(module)["pretrained_cfg"] = "mine"
    with pytest.raises(ModelError, match="pretrained_cfg is not one that timm reads"):
        found_preprocessing(small_settings(), module)


def test_all_that_differs_is_told() -> None:
    found = FoundPreprocessing(
        {"resize": 248, "crop": 224, "interpolation": "bicubic", **HALF}, "timm"
    )
    (told,) = disagreements(PreprocessingSettings(), found)
    assert told.startswith("the preprocessing is not the one that timm states: resize is 256, the")
    assert "mean is (0.485, 0.456, 0.406), the model's (0.5, 0.5, 0.5)" in told
    assert list(disagreements(PreprocessingSettings(**found.values), found)) == []
    assert list(disagreements(PreprocessingSettings(), None)) == []
