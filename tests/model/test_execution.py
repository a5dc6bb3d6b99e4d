from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_model
from structlog.testing import capture_logs
from torch import nn

from nap_stream.core.base_scores import energy
from nap_stream.errors import CalibrationError, ModelError
from nap_stream.model import execution as execution_module
from nap_stream.model.execution import (
    configured,
    float32_kernels,
    precisions_of,
    require_execution,
    require_precision,
    slowness,
)
from nap_stream.model.facts import Execution
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import Forward
from nap_stream.model.load import LoadedModel, adopt_module, load_model
from nap_stream.settings.schema import ModelSettings, PreprocessingSettings
from tests.support.small_calibration import scorer_of
from tests.support.small_models import SIZE, by_name
from tests.support.small_settings import CPU, load_small, small_settings

CUDA = torch.device("cuda")
LAST = Execution(channels_last=True)
HALF = Execution("bfloat16")
BOTH = Execution("bfloat16", channels_last=True)
TORCHVISION = ["resnet18", "mobilenet_v3_small"]


def pixels(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module", params=TORCHVISION)
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    factory = f"torchvision.models:{request.param}"
    weights = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        module = getattr(torchvision.models, request.param)()
        # Without statistics of its normalisation layers hardly anything reaches the head.
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
            if isinstance(part, nn.Linear):
                part.weight.mul_(10)
        module.train()(torch.randn(16, 3, 64, 64))
    save_model(module, str(weights))
    preprocessing = PreprocessingSettings(resize=64, crop=64)
    settings = ModelSettings(factory=factory, weights=weights, preprocessing=preprocessing)
    return load_model(settings, CPU)


def assert_close(first: Forward, second: Forward, *, part: float) -> None:
    """All outputs agree but for a part of the largest of each."""
    assert first.features is not None
    assert second.features is not None
    for one, other in (
        (first.logits, second.logits),
        (first.features, second.features),
        (first.nap, second.nap),
    ):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= part * other.abs().max()


def test_the_default_is_what_ran_before() -> None:
    assert Execution() == Execution("float32", channels_last=False, compile="off")
    assert str(Execution()) == "float32, contiguous"
    assert str(replace(BOTH, compile="default")) == "bfloat16, channels_last, compiled (default)"
    loaded = load_small("SmallNet")
    assert (loaded.execution, loaded.float32_head, loaded.batch_size) == (Execution(), None, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Execution()),
        ({"precision": "bfloat16", "channels_last": True}, BOTH),
        ({"channels_last": False, "compile": False}, Execution()),
        ({"compile": "default"}, Execution(compile="default")),
    ],
)
def test_what_settings_ask_for(changes: dict[str, Any], expected: Execution) -> None:
    settings = ModelSettings.model_validate({"factory": "package:name"} | changes)
    assert configured(settings) == expected


def test_a_calibration_in_another_execution_is_refused() -> None:
    def ask(**changes: Any) -> None:
        open_settings = {"precision": "auto", "channels_last": None}
        require_execution(BOTH, small_settings(**(open_settings | changes)))

    ask()
    ask(precision="bfloat16", channels_last=True)
    for changes, problem in (
        ({"precision": "float32"}, "model.precision is float32, not bfloat16"),
        ({"channels_last": False}, "model.channels_last is False, not True"),
        ({"compile": "default"}, "model.compile is default, not off"),
    ):
        with pytest.raises(CalibrationError, match=f"{problem}.*Calibrate anew"):
            ask(**changes)


def test_layouts_agree_but_for_rounding(plain: LoadedModel) -> None:
    images = pixels(2, 64)
    expected = plain.forward(images)
    assert_close(plain.under(LAST).forward(images), expected, part=1e-5)
    assert_close(plain.under(HALF).forward(images), expected, part=0.1)
    assert_close(plain.under(BOTH).forward(images), expected, part=0.1)
    # The model that they were made of is as it was.
    assert_close(plain.forward(images), expected, part=0.0)
    assert all(tensor.dtype != torch.bfloat16 for tensor in plain.module.parameters())


def test_logits_are_float32_of_the_head(plain: LoadedModel) -> None:
    seen = plain.under(BOTH).forward(pixels(4, 64))
    head = plain.module.get_submodule(plain.head.module if plain.head else "")
    assert isinstance(head, nn.Linear)
    assert seen.features is not None
    torch.testing.assert_close(seen.logits, head(seen.features), rtol=1e-5, atol=1e-6)
    # bfloat16 has 8 bits: rounded logits would differ.
    assert not torch.equal(seen.logits, seen.logits.bfloat16().float())
    assert len(set(energy(seen.logits).tolist())) == 4


def test_weights_are_cast_once_but_for_the_head(plain: LoadedModel) -> None:
    loaded = plain.under(BOTH)
    head = loaded.head.module if loaded.head else ""
    kinds = {
        (type(module).__name__, name == head): module.weight.dtype
        for name, module in loaded.module.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    }
    assert kinds["Conv2d", False] == torch.bfloat16
    assert kinds["Linear", True] == kinds["BatchNorm2d", False] == torch.float32
    # Casting once gives, bit for bit, what autocast gives.
    images = pixels(3, 64)
    cast = adopted(plain, BOTH).forward(images)
    assert_close(cast, loaded.forward(images), part=1e-6)


def adopted(plain: LoadedModel, execution: Execution) -> LoadedModel:
    return adopt_module(
        plain.module,
        plain.preprocessing,
        plain.class_names,
        feature_site=plain.feature_site,
        fingerprint=plain.fingerprint,
        execution=execution,
    )


def test_a_users_module_is_not_changed(plain: LoadedModel) -> None:
    before = {
        name: (id(tensor), tensor.dtype, tensor.stride(), tensor._version)
        for name, tensor in plain.module.state_dict(keep_vars=True).items()
    }
    images = pixels(3, 64)
    assert_close(adopted(plain, BOTH).forward(images), plain.forward(images), part=0.1)
    after = {
        name: (id(tensor), tensor.dtype, tensor.stride(), tensor._version)
        for name, tensor in plain.module.state_dict(keep_vars=True).items()
    }
    assert after == before


def test_pixels_of_either_layout_give_the_same(plain: LoadedModel) -> None:
    planar = pixels(3, 64)
    interleaved = planar.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for loaded in (plain, plain.under(BOTH)):
        assert_close(loaded.forward(interleaved), loaded.forward(planar), part=0.0)


def test_interleaved_pixels_are_never_laid_out_anew(
    plain: LoadedModel,
) -> None:
    given: list[torch.Tensor] = []
    loaded = plain.under(LAST)
    loaded.module.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
    interleaved = torch.zeros(3, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    normalised: list[int] = []
    normalise = loaded.normalise

    def noting(batch: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
        normalised.append(batch.data_ptr())
        return normalise(batch, layout)

    seen = replace(loaded, normalise=noting)  # type: ignore[arg-type]  # notes what it is given
    seen.forward(interleaved)
    assert normalised == [interleaved.data_ptr()]
    assert given[0].is_contiguous(memory_format=torch.channels_last)


def test_the_fingerprint_is_that_of_the_weights_in_the_file() -> None:
    assert load_model(small_settings(), CPU, BOTH).fingerprint == load_small("SmallNet").fingerprint


def test_a_model_loads_under_an_execution_as_it_is_put_under_it() -> None:
    loaded = load_model(small_settings(), CPU, BOTH)
    assert loaded.execution == BOTH
    images = pixels(4)
    assert_close(loaded.forward(images), load_small("SmallNet").under(BOTH).forward(images), part=0)
    assert loaded.module.get_parameter("features.0.weight").dtype == torch.bfloat16


def test_replicas_in_two_threads_give_what_one_gives_alone(plain: LoadedModel) -> None:
    loaded = plain.under(BOTH)
    batches = [pixels(2, 64, seed) for seed in range(4)]
    expected = [scorer_of(loaded)(batch) for batch in batches]
    replica = loaded.replica()
    scorers = [scorer_of(loaded), scorer_of(replica)]
    with ThreadPoolExecutor(2) as pool:
        halves = list(
            pool.map(
                lambda one, mine: [one(batch) for batch in mine],
                scorers,
                (batches[::2], batches[1::2]),
            )
        )
    for found, wanted in zip(
        (*halves[0], *halves[1]), (*expected[::2], *expected[1::2]), strict=True
    ):
        np.testing.assert_array_equal(found.class_id, wanted.class_id)
        for name, column in found.values.items():
            np.testing.assert_array_equal(column, wanted.values[name])
    own, other = dict(loaded.module.named_parameters()), dict(replica.module.named_parameters())
    assert all(own[name] is other[name] for name in own)
    assert not set(loaded.module.modules()) & set(replica.module.modules())


class NoCopyNet(nn.Module):
    """A module that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = by_name("SmallNet")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(x)
        return logits

    def __deepcopy__(self, memo: dict[int, object]) -> "NoCopyNet":
        raise TypeError("a lock inside")


def test_what_cannot_have_a_replica_says_so() -> None:
    module = NoCopyNet().eval()
    seen = probe(module, torch.zeros(2, 3, SIZE, SIZE))
    plain = adopt_module(
        module,
        small_settings().preprocessing,
        ("a", "b", "c"),
        feature_site=choose_site(seen, None),
        fingerprint="0",
    )
    with pytest.raises(ModelError, match=r"cannot be copied .TypeError: a lock inside"):
        plain.replica()
    with pytest.raises(ModelError, match=r"torch\.compile is for one thread"):
        load_model(small_settings("compiled"), CPU).replica()
    with pytest.raises(ModelError, match="TF32 is for one thread"):
        replace(load_small("SmallNet"), execution=Execution("tf32")).replica()


@pytest.mark.parametrize(
    ("precision", "problem"),
    [("tf32", "TF32 is of NVIDIA GPUs"), ("float16", "no float16 kernels")],
)
def test_a_precision_that_a_cpu_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: Any, problem: str
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(ModelError, match=rf"{problem}.*calibrate on this one"):
        load_model(small_settings(), CPU, Execution(precision))
    assert precision not in precisions_of(CPU)


def test_a_gpu_without_bfloat16_or_tf32_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert precisions_of(CUDA) == ("float32", "float16")
    with pytest.raises(ModelError, match="older than Ampere"):
        require_precision("tf32", CUDA)
    with pytest.raises(ModelError, match="no bfloat16"):
        require_precision("bfloat16", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert precisions_of(CUDA) == ("float32", "tf32", "bfloat16", "float16")


def test_a_cpu_without_bfloat16_instructions_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "_cpu_has_bfloat16", lambda: False)
    assert "slow here" in slowness(HALF, CPU)
    assert slowness(Execution(), CPU) == slowness(HALF, CUDA) == ""
    with capture_logs() as logs:
        load_model(small_settings(), CPU, HALF)
    assert [entry["event"] for entry in logs] == ["precision_slow_here"]


def test_tf32_is_switched_for_a_block_on_cuda_alone() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = flags()
    for wanted in (True, False):
        with float32_kernels(CUDA, tf32=wanted):
            assert flags() == (wanted, wanted)
        assert flags() == before
        with float32_kernels(CPU, tf32=not before[0]):
            assert flags() == before


class ViewNet(nn.Module):
    """Flattens its map by a view, which takes contiguous maps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(self.conv(x).relu())
        logits: torch.Tensor = self.head(pooled.view(len(x), -1))
        return logits


def view_net() -> ViewNet:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ViewNet()


def view_settings(**changes: Any) -> ModelSettings:
    return small_settings().model_copy(
        update={"factory": f"{__name__}:view_net", "kwargs": {}} | changes
    )


def test_a_model_that_takes_no_channels_last_runs_contiguous_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A processor without them has a warning of its own.
    monkeypatch.setattr(execution_module, "_cpu_has_bfloat16", lambda: True)
    images = pixels(3)
    plain = load_model(view_settings(), CPU)
    with pytest.raises(ModelError, match=r"view.*channels_last: false"):
        plain.under(BOTH)
    with capture_logs() as logs:
        loaded = load_model(view_settings(), CPU, BOTH)
    assert [entry["event"] for entry in logs] == ["channels_last_impossible"]
    assert loaded.execution == HALF
    assert_close(loaded.forward(images), plain.under(HALF).forward(images), part=0)


def test_weights_that_are_not_float32_have_no_reduced_precision() -> None:
    plain = load_model(small_settings("half"), CPU)
    with pytest.raises(ModelError, match=r"torch\.bfloat16 already.*precision: float32"):
        plain.under(HALF)
    assert plain.under(LAST).forward(pixels(2)).logits.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_of_a_compiled_model_are_padded_and_cut(count: int) -> None:
    shapes: list[int] = []
    plain = load_small("SmallNet")
    expected = plain.forward(pixels(count))
    plain.module.register_forward_pre_hook(lambda _module, args: shapes.append(len(args[0])))
    padded = replace(plain, batch_size=4)
    assert_close(padded.forward(pixels(count)), expected, part=1e-5)
    assert set(shapes) == {4}
    assert len(scorer_of(padded)(pixels(count)).class_id) == count


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_scores() -> None:
    execution = Execution("bfloat16", compile="default")
    loaded = load_model(small_settings(), CPU, execution, batch_size=4)
    assert (loaded.execution, loaded.batch_size) == (execution, 4)
    assert_close(loaded.forward(pixels(6)), load_small("SmallNet").forward(pixels(6)), part=0.05)
    with pytest.raises(ModelError, match="one thread"):
        loaded.replica()


def test_without_a_compiler_the_model_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_module: nn.Module, **_options: object) -> nn.Module:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with capture_logs() as logs:
        loaded = load_model(small_settings(), CPU, Execution(compile="default"), batch_size=4)
    assert [entry["event"] for entry in logs] == ["model_not_compiled"]
    assert logs[0]["reason"] == "RuntimeError: no C++ compiler"
    assert loaded.batch_size is None
    assert_close(loaded.forward(pixels(2)), load_small("SmallNet").forward(pixels(2)), part=0)


def test_without_a_batch_size_nothing_is_compiled() -> None:
    assert load_model(small_settings(), CPU, Execution(compile="default")).batch_size is None
