"""Whole models in one file: TorchScript, torch.export and ONNX, good and bad."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nap_stream.core.prior import attention_prior, nap
from nap_stream.errors import FeatureMapError, ModelError
from nap_stream.first_model import known_preprocessing
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.model.families import images as family_images
from tests.model.families import last_attention, small_vit
from tests.support.small_models import SIZE, ReluHeadNet, SmallNet, SoftmaxNet, TupleNet, by_name
from tests.support.small_settings import CPU, PLAIN, PREPROCESSING
from tests.support.ways import KINDS, SIDE, Body, Case, body

JIT: Any = torch.jit
IMAGES = torch.rand(5, 3, SIZE, SIZE)


def load(path: Path, **changes: Any) -> LoadedModel:
    settings = {"weights": path, "preprocessing": PREPROCESSING} | PLAIN | changes
    return load_model(ModelSettings(**settings), CPU)


def traced(network: nn.Module, path: Path) -> Path:
    path = path / "traced.pt"
    JIT.trace(network.eval(), IMAGES[:1]).save(str(path))
    return path


def exported(network: nn.Module, path: Path) -> Path:
    path = path / "exported.pt2"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (IMAGES,), dynamic_shapes=shapes), path)
    return path


def as_onnx(network: nn.Module, path: Path, **changes: Any) -> Path:
    path = path / "model.onnx"
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.onnx.export(network.eval(), (IMAGES[:1],), str(path), dynamo=False, **changes)
    return path


SAVE = [traced, exported, as_onnx]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("save", SAVE)
@pytest.mark.parametrize(
    "network", ["SmallNet", "FlattenNet", "InPlaceNet", "GemNet", "ClampedGemNet"]
)
def test_the_same_as_the_network_itself(
    tmp_path: Path, save: Callable[..., Path], network: str
) -> None:
    module = by_name(network).eval()
    loaded = load(save(module, tmp_path))
    itself = load_model(
        ModelSettings(
            factory="tests.support.small_models:by_name",
            kwargs={"name": network},
            preprocessing=PREPROCESSING,
            **PLAIN,
        ),
        CPU,
    )
    found, expected = loaded.forward(IMAGES), itself.forward(IMAGES)
    for name in ("logits", "features", "nap"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert loaded.head is not None
    assert torch.equal(loaded.replica().forward(IMAGES).nap, found.nap)
    assert load(save(module, tmp_path)).fingerprint
    assert loaded.fingerprint != itself.fingerprint


def test_a_map_with_channels_last_that_a_user_names_in_onnx(tmp_path: Path) -> None:
    path = as_onnx(by_name("ChannelsLastNet"), tmp_path)
    named = load(path, feature_layer="/norm/LayerNormalization_output_0")
    assert named.feature_site.shape == (4, SIZE, SIZE)
    module: Any = by_name("ChannelsLastNet")
    with torch.inference_mode():
        maps = module.norm(module.features(IMAGES).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(named.forward(IMAGES).nap, nap(maps))
    with pytest.raises(FeatureMapError, match=r"a transpose \(0, 2, 1, 3\)"):
        load(path, feature_layer="/Transpose_1_output_0")


WAY_IMAGES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
WAY_SIZE = PreprocessingSettings(resize=SIDE, crop=SIDE)
# torch.onnx has no such operator.
NOT_IN_ONNX = re.compile("expm1|float_power")


def way_as_onnx(kind: str, name: str, path: Path) -> tuple[Body, Case, Path]:
    pytest.importorskip("onnxruntime")
    case = KINDS[kind]()[name]
    net = body(case.way, case.width)
    torch.onnx.export(net, (WAY_IMAGES,), str(path / "way.onnx"), dynamo=False)
    return net, case, path / "way.onnx"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tokens", "attention, amax"),
        ("tokens", "mixer, 1d"),
        ("tokens", "mixer, turned"),
        ("tokens", "learned, mean"),
        ("multi-scale", "mean and mean of tokens"),
        ("multi-scale", "mean and channels last"),
        ("ensembles", "maximum of adaptive"),
        ("channels last", "windows, amax"),
        *(("transformed", name) for name in KINDS["transformed"]() if not NOT_IN_ONNX.match(name)),
    ],
)
def test_the_map_of_a_way_in_onnx(tmp_path: Path, kind: str, name: str) -> None:
    net, case, path = way_as_onnx(kind, name, tmp_path)
    loaded = load(path, preprocessing=WAY_SIZE)
    found = loaded.replica().forward(WAY_IMAGES)
    with torch.inference_mode():
        logits, maps = case.way(net, WAY_IMAGES)
    channels = torch.tensor([part.shape[1] for part in maps])
    each = torch.stack([nap(part.flatten(2).unsqueeze(-1)) for part in maps])
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    expected = (each * channels[:, None]).sum(0) / channels.sum()
    torch.testing.assert_close(found.nap, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("class tokens", "plain, 1 learned, index"),
        ("class tokens", "plain, mean of 2"),
        ("weighed", "gate, sigmoid"),
        ("weighed", "masked, product"),
    ],
)
def test_what_is_not_read_in_onnx_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    _, _, path = way_as_onnx(kind, name, tmp_path)
    with pytest.raises(FeatureMapError, match=r"given as a program of torch\.export or a TorchScr"):
        load(path, preprocessing=WAY_SIZE)


def test_rows_of_onnx_that_are_no_images_are_refused(tmp_path: Path) -> None:
    path = as_onnx(by_name("TwoViewsNet"), tmp_path)
    for layer in (None, "/features/features.1/Relu_output_0"):
        with pytest.raises(FeatureMapError, match="a map of one row an image"):
            load(path, feature_layer=layer)


@pytest.mark.parametrize("save", SAVE)
def test_what_is_made_of_a_head_is_no_head(tmp_path: Path, save: Callable[..., Path]) -> None:
    loaded = load(save(ReluHeadNet().eval(), tmp_path))
    assert loaded.head is None
    seen = loaded.forward(IMAGES)
    assert seen.features is not None
    assert seen.features.shape == (5, 4)


@pytest.mark.parametrize("save", SAVE)
def test_probabilities_are_seen(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(SoftmaxNet().eval(), tmp_path)
    with pytest.raises(ModelError, match="probabilities in place of logits"):
        load(path)
    logits = load(path, output_kind="probabilities").forward(IMAGES).logits
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("save", [traced, exported])
def test_logits_in_a_tuple(tmp_path: Path, save: Callable[..., Path]) -> None:
    assert load(save(TupleNet().eval(), tmp_path)).output.path == ("0",)


def test_one_of_several_outputs_of_onnx(tmp_path: Path) -> None:
    path = as_onnx(TupleNet(), tmp_path, output_names=["scores", "pixels"])
    with pytest.raises(ModelError, match=r"outputs: scores, pixels.*model\.output: scores"):
        load(path)
    assert load(path, output="scores").head is not None
    with pytest.raises(ModelError, match="no value 'other'"):
        load(path, output="other")


def test_a_map_that_a_user_names_in_onnx(tmp_path: Path) -> None:
    path = as_onnx(SmallNet(), tmp_path)
    expected = load(path).forward(IMAGES).nap
    assert torch.equal(
        load(path, feature_layer="/features/features.1/Relu_output_0").forward(IMAGES).nap, expected
    )
    with pytest.raises(ModelError, match=r"no value of this name; the last are: .*Relu_output_0"):
        load(path, feature_layer="features")


def test_another_file_is_another_model(tmp_path: Path) -> None:
    before = load(as_onnx(by_name("SmallNet"), tmp_path)).fingerprint
    assert load(as_onnx(by_name("SmallNet"), tmp_path)).fingerprint == before
    assert load(as_onnx(by_name("SmallNet", seed=1), tmp_path)).fingerprint != before


def test_a_precision_that_onnx_does_not_take(tmp_path: Path) -> None:
    from nap_stream.model.facts import Execution  # noqa: PLC0415

    path = as_onnx(SmallNet(), tmp_path)
    settings = ModelSettings(weights=path, preprocessing=PREPROCESSING)
    with pytest.raises(ModelError, match="computes as its file says"):
        load_model(settings, CPU, Execution("bfloat16"))


class Training(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.net = SmallNet()

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.norm(x))


class TwoInputs(SmallNet):
    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
        return super().forward(x if scale is None else x * scale)


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["NAP_STREAM_TEST_TRACE"],)


def exported_in_training(path: Path) -> Path:
    return exported(Training().train(), path)


def exported_for_a_batch_of_five(path: Path) -> Path:
    torch.export.save(torch.export.export(SmallNet().eval(), (IMAGES,)), path / "fixed.pt2")
    return path / "fixed.pt2"


def quantised_onnx(path: Path) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(str(as_onnx(SmallNet(), path)), str(path / "int8.onnx"))
    return path / "int8.onnx"


def two_inputs_of_onnx(path: Path) -> Path:
    pytest.importorskip("onnx")
    given, to = (IMAGES[:1], IMAGES[:1]), path / "two.onnx"
    torch.onnx.export(TwoInputs().eval(), given, str(to), dynamo=False)
    return to


def noise(suffix: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / f"noise{suffix}").write_bytes(b"no model at all" * 9)
        return path / f"noise{suffix}"

    return write


def weights_alone(path: Path) -> Path:
    torch.save(SmallNet().state_dict(), path / "weights.pt")
    return path / "weights.pt"


def cut_off(save: Callable[..., Path]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        found = save(SmallNet().eval(), path)
        found.write_bytes(found.read_bytes()[: found.stat().st_size // 2])
        return found

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (exported_in_training, r"exported in training mode.*model\.eval\(\)"),
        (exported_for_a_batch_of_five, "fails on an input of shape"),
        (quantised_onnx, r"is quantised.*float32 model"),
        (two_inputs_of_onnx, "expected images alone"),
        (noise(".onnx"), "ONNX file cannot be read"),
        (noise(".pt2"), "exported program cannot be read"),
        (noise(".pt"), "whole model there, and it is none"),
        (weights_alone, r"Name the callable that builds the model in model\.factory"),
        (cut_off(traced), "whole model there, and it is none"),
        (cut_off(exported), "exported program cannot be read"),
        (cut_off(as_onnx), "cannot be read|cannot load"),
    ],
)
def test_a_file_that_is_no_model(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(write(tmp_path))
    assert "Traceback" not in str(caught.value)


def scripted_as(path: Path, how: str) -> Path:
    network = small_vit().eval()
    if how == "traced":
        graph = JIT.trace(network, VIT_IMAGES[:1], check_trace=False)
    else:
        graph = JIT.script(network)
        graph = JIT.freeze(graph) if how == "frozen" else graph
    graph.save(str(path / f"{how}.pt"))
    return path / f"{how}.pt"


VIT_IMAGES = family_images(32)


@pytest.mark.parametrize("how", ["scripted", "frozen", "traced"])
def test_the_class_token_of_a_scripted_transformer(tmp_path: Path, how: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        path = scripted_as(tmp_path, how)
        torch.manual_seed(0)
        network = small_vit().eval()
    loaded = load(path, preprocessing=PreprocessingSettings(resize=32, crop=32))
    found = loaded.forward(VIT_IMAGES)
    with torch.inference_mode():
        expected = attention_prior(last_attention(network, VIT_IMAGES))
        torch.testing.assert_close(found.logits, network(VIT_IMAGES))
    assert loaded.feature_site.kind == "cls_attention"
    torch.testing.assert_close(found.nap, expected)


@pytest.mark.parametrize("name", ["modle.onnx", "modle.pt", "modle.pt2", "modle"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    there = Path(name).with_stem("model").name
    (tmp_path / there).touch()
    with pytest.raises(ModelError) as caught:
        load(tmp_path / name)
    assert caught.value.where == f"model.weights = {tmp_path / name}"
    assert caught.value.problem == (
        f"there is no {name} in {tmp_path}, which holds {there}; the closest is {there}"
    )
    assert "relative to that file's folder" in caught.value.action


def test_a_folder_that_holds_a_model_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"it holds model\.onnx\. Name the file, as in model\.wei"):
        load(tmp_path)


@pytest.mark.parametrize("save", [exported, as_onnx])
def test_the_one_size_of_image_that_a_file_is_for(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    known = known_preprocessing(ModelSettings(weights=save(SmallNet().eval(), tmp_path)))
    assert known is not None
    assert known.settings == PreprocessingSettings(resize=SIZE, crop=SIZE)
    assert known.is_guess
    assert f"takes images of {SIZE} x {SIZE} alone" in known.source


def test_a_file_that_takes_any_size(tmp_path: Path) -> None:
    sides = {2: "height", 3: "width"}
    onnx = as_onnx(SmallNet(), tmp_path, input_names=["x"], dynamic_axes={"x": sides})
    for path in (onnx, traced(SmallNet(), tmp_path)):
        assert known_preprocessing(ModelSettings(weights=path)) is None


def test_a_program_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile  # noqa: PLC0415

    trace = tmp_path / "was-run"
    monkeypatch.setenv("NAP_STREAM_TEST_TRACE", str(trace))
    path = exported(SmallNet().eval(), tmp_path)
    torch.save(Unpickled(), tmp_path / "hostile.bin")
    hostile = (tmp_path / "hostile.bin").read_bytes()
    with zipfile.ZipFile(path) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w") as after:
        for name, data in members.items():
            after.writestr(name, hostile if name.endswith(".pt") else data)
    with pytest.raises(ModelError, match="cannot be read"):
        load(path)
    assert not trace.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_fixed_batch_of_onnx_takes_any(tmp_path: Path) -> None:
    loaded = load(as_onnx(SmallNet(), tmp_path))
    whole = loaded.forward(IMAGES).logits
    np.testing.assert_allclose(
        whole.numpy(),
        torch.cat([loaded.forward(one[None]).logits for one in IMAGES]).numpy(),
        # Float32 sums: how many images stand beside each other decides their order.
        rtol=1e-5,
    )


@pytest.mark.parametrize("kind", ["scripted", "program"])
def test_a_factory_of_a_graph(kind: str) -> None:
    settings = ModelSettings(
        factory=f"tests.model.test_whole_models:{kind}", preprocessing=PREPROCESSING, **PLAIN
    )
    assert load_model(settings, CPU).head is not None


def scripted() -> Any:
    return JIT.trace(by_name("SmallNet").eval(), IMAGES[:1])


def program() -> Any:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(by_name("SmallNet").eval(), (IMAGES,), dynamic_shapes=shapes)
