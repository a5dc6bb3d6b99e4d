import doctest
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from nap_stream import OODScorer, ood_scorer
from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.fit import FitPart
from nap_stream.core.base_scores import BaseScores
from nap_stream.core.conformal import Rule
from nap_stream.core.score_specs import BaseScore
from nap_stream.errors import CalibrationError, FingerprintMismatchError, ModelError
from nap_stream.model import load as load_module
from nap_stream.model.device_decode import rounded
from nap_stream.model.forward import BatchScores, Forward, score_forward
from nap_stream.model.preprocessing import preprocess
from nap_stream.ood_scorer import OODScores
from nap_stream.settings.schema import ScoringSettings
from tests.support.image_bytes import picture
from tests.support.small_calibration import write_calibrated, write_images
from tests.support.small_models import (
    SIZE,
    CosineNet,
    InPlaceNet,
    OverflowNet,
    SmallNet,
    SoftmaxNet,
    TupleNet,
    TwoScalesNet,
    TwoViewsNet,
    by_name,
)
from tests.support.small_settings import PREPROCESSING, load_small, small_settings

COUNT = 19


def array(number: int) -> NDArray[np.uint8]:
    """An image, 9 pixels high, 9 to 11 wide; (h, w, 3)."""
    return np.array(picture(9 + number % 3, 9, seed=number))


def pixels(number: int) -> torch.Tensor:
    """The same, (3, h, w)."""
    return torch.from_numpy(array(number)).permute(2, 0, 1)


WITH_ASH = ScoringSettings(method="nap-energy", scores=(BaseScore.ASH,))


def make_artifact(
    folder: Path, network: str = "SmallNet", scoring: ScoringSettings = WITH_ASH, **changes: Any
) -> Path:
    """Calibrate one of the small networks on the images above."""
    return write_calibrated(
        folder / "calibration",
        write_images(folder / "held-out", COUNT),
        model=small_settings(kwargs={"name": network}, **changes),
        scoring=scoring,
        rule=Rule(alpha=0.2),
        weight=0.5,
    )


def build_model() -> nn.Module:
    return by_name("SmallNet").eval()


def with_weights_of_small_net(network: type[SmallNet]) -> nn.Module:
    model = network()
    model.load_state_dict(build_model().state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("scorer"))


def model_input(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def assert_close(first: OODScores, second: OODScores, rtol: float = 1e-5) -> None:
    assert torch.equal(first.class_id, second.class_id)
    torch.testing.assert_close(first.score, second.score, rtol=rtol, atol=0, equal_nan=True)
    torch.testing.assert_close(
        first.ood_p_value, second.ood_p_value, rtol=rtol, atol=0, equal_nan=True
    )


def test_scores_are_those_of_a_plain_reading(artifact: Path) -> None:
    model, x = build_model(), model_input()
    assert isinstance(model, SmallNet)
    scores = OODScorer.load(artifact, model)(x)

    with torch.no_grad():
        maps, logits = model.features(x), model(x)
    nap = (maps.amax((2, 3)) / (maps.mean((2, 3)) + 1)).square().mean(1)
    energy = logits.logsumexp(1)
    torch.testing.assert_close(scores.values["nap"], nap)
    torch.testing.assert_close(scores.values["energy"], energy)
    torch.testing.assert_close(scores.values["msp"], logits.softmax(1).amax(1))
    assert torch.equal(scores.class_id, logits.argmax(1))
    fused = (energy.double().clamp(min=1e-308) * nap.double()).sqrt()
    torch.testing.assert_close(scores.score, fused, rtol=1e-5, atol=0)
    calibrated = torch.from_numpy(load_calibration(artifact).arrays["score"].copy())
    at_most = (calibrated[None] <= scores.score[:, None]).sum(1)
    torch.testing.assert_close(scores.ood_p_value, (1 + at_most) / (COUNT + 1.0), check_dtype=False)
    assert torch.equal(scores.is_ood, scores.ood_p_value <= 0.2)
    assert scores.is_finite.all()
    assert len(scores) == 5


def test_dtypes_are_as_documented(artifact: Path) -> None:
    scores = OODScorer(artifact, build_model())(model_input())
    assert scores.class_id.dtype == torch.int64
    assert scores.ood_p_value.dtype == scores.score.dtype == torch.float64
    assert scores.is_ood.dtype == scores.is_finite.dtype == torch.bool
    assert set(scores.values) == {"nap", "msp", "max_logit", "energy", "ash"}
    assert all(value.dtype == torch.float32 for value in scores.values.values())
    assert {value.shape for value in scores.values.values()} == {(5,)}


def outputs_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    assert isinstance(model, SmallNet)
    with torch.no_grad():
        maps = model.features(x)
        return {"logits": model(x), "features": maps.mean((2, 3)), "feature_map": maps}


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("as_arrays", [True, False])
def test_outputs_of_elsewhere_score_as_images_do(
    artifact: Path, *, with_model: bool, as_arrays: bool
) -> None:
    model, x = build_model(), model_input()
    assert isinstance(model, SmallNet)
    head = (model.head.weight, model.head.bias)
    scorer = OODScorer(artifact, model if with_model else None, head=head)
    given: dict[str, Any] = dict(outputs_of(model, x))
    if as_arrays:
        given = {name: value.numpy() for name, value in given.items()}
    found, expected = scorer.score_outputs(**given), OODScorer(artifact, model)(x)
    assert_close(found, expected)
    for name, value in expected.values.items():
        torch.testing.assert_close(found.values[name], value)


def test_outputs_of_another_shape_are_refused(artifact: Path) -> None:
    model, x = build_model(), model_input()
    given = outputs_of(model, x)
    scorer = OODScorer(artifact, model)
    for name, wrong in (
        ("logits", given["logits"][:, :2]),
        ("features", given["features"][:, :2]),
        ("features", given["features"][:2]),
        ("features", None),
        ("feature_map", None),
        ("feature_map", given["feature_map"][:, :, :4]),
        ("feature_map", given["feature_map"].flatten(1)),
    ):
        with pytest.raises(ValueError, match=rf"expected {name} of shape \(5, "):
            scorer.score_outputs(**{**given, name: wrong})


def test_outputs_of_elsewhere_with_several_maps(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "TwoScalesNet")
    model, x = by_name("TwoScalesNet").eval(), model_input()
    assert isinstance(model, TwoScalesNet)
    with torch.no_grad():
        logits, (whole, half) = model(x), model.maps(x)
    features = whole.mean((2, 3)) + half.mean((2, 3))
    scorer = OODScorer(artifact, model)
    # The last one on the way comes first.
    assert_close(scorer.score_outputs(logits, features, [half, whole]), scorer(x))
    for wrong in (whole, [whole], [half, whole, half], {"feature_map": half}):
        with pytest.raises(ValueError, match=r"the prior is of 2 maps .* a sequence of all"):
            scorer.score_outputs(logits, features, wrong)
    for maps in ([whole, half], None):
        with pytest.raises(ValueError, match=r"expected feature_map of shape \(5, 4, 4, 4\)"):
            scorer.score_outputs(logits, features, maps)


def test_outputs_of_elsewhere_with_rows_of_views(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "TwoViewsNet")
    model, x = by_name("TwoViewsNet").eval(), model_input()
    assert isinstance(model, TwoViewsNet)
    with torch.no_grad():
        logits, rows = model(x), model.rows(x)
    views = rows.reshape(5, 2, 4, 8, 4).transpose(1, 2)
    features = views.mean((2, 3, 4))
    scorer = OODScorer(artifact, model)
    assert_close(scorer.score_outputs(logits, features, views.reshape(5, 4, 1, 64)), scorer(x))
    with pytest.raises(ValueError, match=r"expected feature_map of shape \(5, 4, 1, 64\)"):
        scorer.score_outputs(logits, features, views[:, :, 0])


def test_what_is_no_logits_is_refused_where_it_is_given(artifact: Path) -> None:
    model, x = build_model(), model_input()
    given = outputs_of(model, x)
    logits, scorer = given["logits"], OODScorer(artifact, model)
    with pytest.raises(ModelError, match="probabilities in place of logits"):
        scorer.score_outputs(**{**given, "logits": logits.softmax(1)[:5]})
    holed = torch.cat([logits[:1] * float("nan"), logits[1:].softmax(1)])
    with pytest.raises(ModelError, match="probabilities in place of logits"):
        scorer.score_outputs(**{**given, "logits": holed})
    # Five images may lie in [0, 1] by chance, twenty do not: 5 + 5 + 5, and then 5 more.
    for _ in range(3):
        assert len(scorer.score_outputs(**{**given, "logits": logits.sigmoid()})) == 5
    with pytest.raises(ModelError, match=r"all outputs lie in \[0, 1\]"):
        scorer.score_outputs(**{**given, "logits": logits.sigmoid()})
    # What raised does not count against what comes then, and what is settled is not asked again.
    for _ in range(4):
        assert len(scorer.score_outputs(**given)) == 5
    shares = torch.tensor([[0.25, 0.25, 0.5]] * 5, dtype=torch.float16)
    assert len(scorer.score_outputs(**{**given, "logits": shares})) == 5


def test_a_scorer_without_a_model(artifact: Path) -> None:
    with pytest.raises(ValueError, match="takes the last linear layer"):
        OODScorer(artifact, None)
    head = (torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="use score_outputs"):
        OODScorer(artifact, None, head=head)(model_input())


def test_an_output_that_is_not_finite_is_not_flagged(artifact: Path) -> None:
    given = outputs_of(build_model(), model_input())
    given["feature_map"][1, 0, 0, 0] = float("nan")
    scores = OODScorer(artifact, build_model()).score_outputs(**given)
    assert scores.is_finite.tolist() == [True, False, True, True, True]
    assert not scores.is_ood[1]


@pytest.mark.parametrize("feature_layer", [None, "features.0"])
def test_calibration_images_score_as_at_calibration(
    tmp_path: Path, feature_layer: str | None
) -> None:
    folder = make_artifact(tmp_path, feature_layer=feature_layer)
    calibration = load_calibration(folder)
    assert calibration.document.model.feature_site.module == (feature_layer or "pool")
    scores = OODScorer(folder, build_model())([pixels(number) for number in range(COUNT)])
    np.testing.assert_allclose(scores.score, calibration.arrays["score"], rtol=1e-5)
    np.testing.assert_allclose(scores.values["nap"], calibration.values["nap"], rtol=1e-5)


def test_pixels_of_one_size_as_a_tensor_or_a_sequence(artifact: Path) -> None:
    scorer = OODScorer(artifact, build_model())
    images = [pixels(3 * number) for number in range(4)]
    stacked = scorer(torch.stack(images))
    assert_close(stacked, scorer(tuple(images)), rtol=0)
    assert_close(stacked, scorer(torch.stack(images).to(memory_format=torch.channels_last)), rtol=0)


def test_pixels_are_normalised_and_the_input_is_not(artifact: Path) -> None:
    scorer = OODScorer(artifact, build_model())
    images = torch.stack([pixels(number)[:, :SIZE, :SIZE] for number in range(4)])
    mean, std = (
        torch.tensor(value).reshape(3, 1, 1) for value in (PREPROCESSING.mean, PREPROCESSING.std)
    )
    x = (images / 255 - mean) / std
    assert_close(scorer(images), scorer(x))
    assert_close(scorer(x), scorer(x.double()))
    assert (scorer(images).score != scorer(images / 255).score).any()


COLUMNS = ["class_id", "ood_p_value", "is_ood", "score", "nap"]


def ragged(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.object_]:
    column = np.empty(len(images), dtype=object)
    column[:] = images
    return column


def test_a_batch_of_columns(artifact: Path) -> None:
    scorer = OODScorer(artifact, build_model)
    images = [array(number) for number in range(4)]
    expected = scorer([pixels(number) for number in range(4)])
    batch = {"path": np.array(["a", "b", "c", "d"]), "image": ragged(images)}
    found = scorer(batch)
    assert list(found) == ["path", "image", *COLUMNS]
    assert list(batch) == ["path", "image"]
    assert found["path"] is batch["path"]
    np.testing.assert_array_equal(found["nap"], expected.values["nap"].numpy())
    for name in COLUMNS[:-1]:
        np.testing.assert_array_equal(found[name], getattr(expected, name).numpy())
        assert found[name].dtype == getattr(expected, name).numpy().dtype


def test_a_column_of_images_of_one_size_that_cannot_be_written(artifact: Path) -> None:
    scorer = OODScorer(artifact, build_model, column="photo")
    images = np.stack([array(3 * number) for number in range(4)])
    images.setflags(write=False)
    found = scorer({"photo": images})
    expected = scorer([pixels(3 * number) for number in range(4)])
    np.testing.assert_array_equal(found["score"], expected.score.numpy())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": np.zeros((1, 8, 8, 3), np.uint8)}, "in the column 'image', got .*'picture'"),
        (
            {"image": np.zeros((1, 8, 8, 3), np.uint8), "score": np.zeros(1)},
            "the batch has score already",
        ),
        ({"image": np.zeros((1, 8, 8), np.uint8)}, r'uint8 of \(8, 8\): read .* mode="RGB"'),
        ({"image": np.zeros((1, 8, 8, 4), np.uint8)}, r"uint8 of \(8, 8, 4\)"),
        ({"image": np.zeros((1, 8, 8, 3), np.float32)}, r"got float32 of \(8, 8, 3\)"),
    ],
)
def test_columns_that_are_refused(
    artifact: Path, batch: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OODScorer(artifact, build_model)(batch)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 3, SIZE, SIZE + 1), r"torch\.float32 of \(2, 3, 8, 9\)"),
        (torch.zeros(3, SIZE, SIZE), r"torch\.float32 of \(3, 8, 8\)"),
        (torch.zeros(()), r"torch\.float32 of \(\)"),
        (torch.zeros((), dtype=torch.uint8), r"torch\.uint8 of \(\)"),
        (torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), r"torch\.uint8 of \(3, 8, 8\)"),
        (torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8), r"torch\.uint8 of \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 0, SIZE, dtype=torch.uint8), r"torch\.uint8 of \(2, 3, 0, 8\)"),
        (torch.zeros(2, 3, SIZE, SIZE, dtype=torch.int64), r"torch\.int64 of \(2, 3, 8, 8\)"),
        (
            [torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)],
            r"a list with torch\.float32 of \(3, 8, 8\)",
        ),
        ([pixels(0), torch.zeros(1, 8, 8)], r"a list with torch\.float32 of \(1, 8, 8\)"),
        ((pixels(0), np.zeros((8, 8, 3), np.uint8)), "a tuple with ndarray"),
        (np.zeros((1, 3, 8, 8), np.uint8), "got ndarray"),
        ("image.png", "got str"),
        (None, "got NoneType"),
    ],
)
def test_images_that_are_refused(artifact: Path, images: Any, got: str) -> None:
    scorer = OODScorer(artifact, build_model)
    with pytest.raises(ValueError, match=rf"tensor \(N, 3, 8, 8\), or pixels.*{got}"):
        scorer(images)


@pytest.mark.parametrize(
    "images", [[], torch.zeros(0, 3, 9, 9, dtype=torch.uint8), torch.zeros(0, 3, SIZE, SIZE)]
)
def test_no_images(artifact: Path, images: Any) -> None:
    scores = OODScorer(artifact, build_model)(images)
    assert len(scores) == 0
    assert set(scores.values) == {"nap", "msp", "max_logit", "energy", "ash"}
    assert scores.ood_p_value.dtype == torch.float64


def test_an_image_that_is_not_finite_is_not_flagged_and_says_so(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path, "OverflowNet", ScoringSettings(method="nap-energy"))
    model = by_name("OverflowNet").eval()
    assert isinstance(model, OverflowNet)
    scorer = OODScorer(folder, model)
    x = model_input()
    x[1, 0, 0, 0] = 1.0
    x[3] = torch.inf
    scores = scorer(x)
    assert scores.is_finite.tolist() == [True, False, True, False, True]
    assert scores.ood_p_value.isnan().tolist() == [False, True, False, True, False]
    assert scores.score.isnan().tolist() == [False, True, False, True, False]
    assert not scores.is_ood[[1, 3]].any()
    others = scorer(x[[0, 2, 4]])
    torch.testing.assert_close(scores.ood_p_value[[0, 2, 4]], others.ood_p_value, rtol=0, atol=0)


def test_a_method_that_is_fitted(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path, scoring=ScoringSettings(method="fisher-knn", knn_k=3))
    calibration = load_calibration(folder)
    scorer = OODScorer(folder, build_model)
    fitted = FitPart.choose(tmp_path / "held-out", None, COUNT).rows
    rest = [pixels(number) for number in range(COUNT) if not fitted[number]]
    scores = scorer(rest)
    np.testing.assert_allclose(scores.score, calibration.arrays["score"], rtol=1e-5)
    np.testing.assert_allclose(scores.values["knn"], calibration.values["knn"], rtol=1e-5)
    x = model_input()
    x[2] = torch.nan
    assert scorer(x).is_finite.tolist() == [True, True, False, True, True]
    assert scorer(x).ood_p_value.isnan().tolist() == [False, False, True, False, False]


def test_a_built_model_is_the_same_as_a_given_one(artifact: Path) -> None:
    x = model_input()
    assert_close(
        OODScorer.load(str(artifact), build_model)(x), OODScorer(artifact, build_model())(x)
    )


def test_the_model_is_left_as_it_was(artifact: Path) -> None:
    model, x = build_model(), model_input()
    expected = model(x)
    scorer = OODScorer(artifact, model)
    scorer(x)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(x), expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_model_in_training_mode_is_refused_and_not_touched(artifact: Path) -> None:
    model = build_model().train()
    with pytest.raises(ModelError, match=r"training mode.*Call model\.eval\(\) first"):
        OODScorer(artifact, model)
    assert model.training
    scorer = OODScorer(artifact, model.eval())
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        scorer(model_input())


@pytest.mark.parametrize(
    "build",
    [
        lambda: by_name("SmallNet", seed=1).eval(),
        lambda: build_model().to(torch.bfloat16),
        lambda: by_name("FlattenNet").eval(),
    ],
)
def test_another_model_is_refused(artifact: Path, build: Callable[[], nn.Module]) -> None:
    message = r"calibration was made with the weights \w{64}, .*Give the module that was calibrated"
    with pytest.raises(FingerprintMismatchError, match=message):
        OODScorer(artifact, build)


@pytest.mark.parametrize("network", [InPlaceNet, CosineNet])
def test_the_same_weights_read_elsewhere_are_refused(
    artifact: Path, network: type[SmallNet]
) -> None:
    with pytest.raises(FingerprintMismatchError, match="they are now at the"):
        OODScorer(artifact, with_weights_of_small_net(network))


def test_logits_are_found_in_what_a_model_returns(artifact: Path) -> None:
    module = with_weights_of_small_net(TupleNet)
    images = torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8)
    found = OODScorer(artifact, module)(images)
    torch.testing.assert_close(found.score, OODScorer(artifact, build_model)(images).score)
    assert isinstance(module(torch.zeros(1, 3, 8, 8)), tuple)


def test_a_model_without_logits(artifact: Path) -> None:
    with pytest.raises(ModelError, match=r"a SoftmaxNet: the model returns probabilities"):
        OODScorer(artifact, with_weights_of_small_net(SoftmaxNet))


def test_a_callable_that_builds_no_module(artifact: Path) -> None:
    with pytest.raises(ModelError, match=r"returned function, expected a torch\.nn\.Module"):
        OODScorer(artifact, lambda: build_model)  # type: ignore[arg-type, return-value] # wrong


def test_no_calibration(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no calibration"):
        OODScorer(tmp_path, build_model)


def test_a_compiled_model(artifact: Path) -> None:
    torch.compiler.reset()
    eager = OODScorer(artifact, build_model)
    compiled = OODScorer(artifact, torch.compile(build_model(), backend="eager"))
    for count in (5, 5, 3):
        assert_close(compiled(model_input(count)), eager(model_input(count)))
    torch.compiler.reset()


class FullPrecisionNet(SmallNet):
    """Computes in float32, whatever the caller's autocast."""

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


def test_the_caller_s_autocast_is_for_the_model_alone(artifact: Path) -> None:
    scorer = OODScorer(artifact, with_weights_of_small_net(FullPrecisionNet))
    expected = scorer(model_input())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer(model_input())
    for name, value in expected.values.items():
        assert torch.equal(found.values[name], value), name


def test_head_and_scores_are_computed_without_tf32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the stream computes them; on a CPU nothing is switched."""
    scorer = OODScorer(make_artifact(tmp_path, precision="bfloat16"), build_model())
    steps: list[str] = []

    @contextmanager
    def told(device: torch.device, *, tf32: bool) -> Iterator[None]:
        steps.append(f"{device}, TF32 {tf32}")
        yield
        steps.append("out")

    def linear(*values: torch.Tensor) -> torch.Tensor:
        steps.append("head")
        return functional.linear(*values)

    def scored(seen: Forward, base_scores: BaseScores) -> BatchScores:
        steps.append("scores")
        return score_forward(seen, base_scores)

    monkeypatch.setattr(load_module, "float32_kernels", told)
    monkeypatch.setattr(load_module, "score_forward", scored)
    monkeypatch.setattr(load_module, "functional", SimpleNamespace(linear=linear))
    scorer(model_input())
    assert steps == ["cpu, TF32 False", "head", "out", "cpu, TF32 False", "scores", "out"]


def test_the_example_of_the_docstring(artifact: Path) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(
        OODScorer,
        module=ood_scorer,
        globs={
            "OODScorer": OODScorer,
            "artifact": artifact,
            "model": build_model(),
            "images": model_input(),
        },
    )
    assert doctest.DocTestRunner().run(example) == (0, 3)


def test_pixels_are_resized_as_where_nvjpeg_decoded() -> None:
    preprocessing = PREPROCESSING.model_copy(update={"jpeg_decoder": "nvjpeg"})
    loaded = load_small("SmallNet", preprocessing=preprocessing)
    images = [pixels(number) for number in range(4)]

    batch = ood_scorer._one_batch(images, loaded)

    expected = [preprocess(image.contiguous(), preprocessing, rounded) for image in images]
    assert torch.equal(batch, torch.stack(expected))
