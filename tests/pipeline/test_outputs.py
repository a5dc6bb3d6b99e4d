from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from nap_stream.calibration.artifact import load_calibration
from nap_stream.calibration.calibration import Calibration, base_scores_of
from nap_stream.calibration.document import ElsewhereFacts
from nap_stream.clock import ManualClock
from nap_stream.core.conformal import Rule
from nap_stream.core.score_specs import BaseScore, Head
from nap_stream.decode.outputs import OutputShapes
from nap_stream.errors import CalibrationError, FingerprintMismatchError, ModelError
from nap_stream.feed import on_cpu
from nap_stream.model.elsewhere import are_of_head
from nap_stream.model.kind_check import KindCheck
from nap_stream.model.lane import open_lane
from nap_stream.model.load import LoadedModel
from nap_stream.pipeline.outputs import (
    KnownOutputs,
    known_outputs,
    output_decoder,
    score_sent,
)
from nap_stream.pipeline.rows import MessageDecoder, RowScorer
from nap_stream.records import Message, TopicPartition
from nap_stream.scored_log.format import SCORE_COLUMNS
from nap_stream.settings.elsewhere import ElsewhereSettings
from nap_stream.settings.schema import (
    LimitSettings,
    ModelSettings,
    OutputKind,
    ScoringSettings,
)
from tests.support.image_bytes import encoded, picture
from tests.support.outputs import FORMS, outputs_of, stream_of
from tests.support.small_calibration import MODEL, calibration_of, write_calibrated, write_images
from tests.support.small_models import ClsNet, SmallNet, by_name
from tests.support.small_settings import load_small, small_settings

CLOCK = ManualClock(now_ms=9_000)
SCORING = ScoringSettings(method="nap-energy", scores=(BaseScore.REACT, BaseScore.MAHALANOBIS))
PNGS = [encoded(picture(9 + n % 3, 9, seed=100 + n), "PNG") for n in range(6)]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of SmallNet, made from images."""
    folder = tmp_path_factory.mktemp("outputs")
    images = write_images(folder / "images", 40)
    changes: dict[str, Any] = {"scoring": SCORING, "weight": 0.5, "rule": Rule(0.2)}
    return load_calibration(write_calibrated(folder / "calibration", images, **changes))


@pytest.fixture
def head(tmp_path: Path) -> Path:
    layer = by_name("SmallNet").head
    save_file({"weight": layer.weight.data, "bias": layer.bias.data}, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def elsewhere(head: Path | None = None, *, images: bool = True, **changes: Any) -> ModelSettings:
    section = ElsewhereSettings(name="parts/1", head=head, calibrated_on_images=images)
    return ModelSettings(elsewhere=section, **changes)


def message(value: bytes, offset: int = 0) -> Message:
    return Message(TopicPartition("t", 0), offset, 1_000, b"key", value)


def rows_of_images(calibration: Calibration, loaded: LoadedModel) -> list[dict[str, Any]]:
    decode = MessageDecoder(
        preprocessing=loaded.preprocessing, limits=LimitSettings(), kept_headers=(), clock=CLOCK
    )
    lane = open_lane(loaded, base_scores_of(calibration, loaded), batch_size=8)
    score = scorer(calibration, lane, loaded.class_names)
    rows: list[dict[str, Any]] = score(
        [decode(message(png, n)) for n, png in enumerate(PNGS)]
    ).to_pylist()
    return rows


def scorer(calibration: Calibration, score_images: Any, names: tuple[str, ...]) -> RowScorer:
    return RowScorer(
        score_images=score_images,
        class_names=names,
        calibration=calibration,
        clock=CLOCK,
    )


def rows_of_outputs(
    calibration: Calibration, known: KnownOutputs, *values: bytes
) -> list[dict[str, Any]]:
    decode = output_decoder(known, LimitSettings(), (), CLOCK)
    score = scorer(
        calibration, partial(score_sent, base_scores=known.base_scores), known.model.class_names
    )
    rows: list[dict[str, Any]] = score(
        [decode(message(value, n)) for n, value in enumerate(values)]
    ).to_pylist()
    return rows


def pixels(loaded: LoadedModel) -> torch.Tensor:
    decoded = (on_cpu(png, LimitSettings(), loaded.preprocessing) for png in PNGS)
    return loaded.normalise(torch.stack([one for one in decoded if isinstance(one, torch.Tensor)]))


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_images(calibration: Calibration, head: Path, form: str) -> None:
    loaded = load_small("SmallNet")
    assert isinstance(loaded.module, SmallNet)
    arrays = outputs_of(loaded.module, pixels(loaded))
    expected = rows_of_images(calibration, loaded)
    found = rows_of_outputs(
        calibration, known_outputs(calibration, elsewhere(head)), stream_of(arrays, form)
    )
    for one, other in zip(found, expected, strict=True):
        for name in SCORE_COLUMNS:
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
        assert (one["status"], one["format"], one["width"]) == ("ok", "outputs", None)
        assert len(one["sha256"]) == 64
    assert {row["react"] is None for row in found} == {False}


def test_a_row_that_is_not_finite_has_no_scores(calibration: Calibration, head: Path) -> None:
    loaded = load_small("SmallNet")
    assert isinstance(loaded.module, SmallNet)
    arrays = outputs_of(loaded.module, pixels(loaded))
    logits = arrays["logits"].copy()
    logits[2, 1] = -np.inf  # which msp and energy would not show
    known = known_outputs(calibration, elsewhere(head))
    found = rows_of_outputs(calibration, known, stream_of(arrays | {"logits": logits}))
    assert [row["status"] for row in found] == ["ok", "ok", "not_finite", "ok", "ok", "ok"]
    assert found[2]["ood_p_value"] is None


def test_attention_of_a_calibration_from_images(tmp_path: Path) -> None:
    folder = write_calibrated(
        tmp_path / "calibration",
        write_images(tmp_path / "images", 20),
        model=small_settings(kwargs={"name": "ClsNet"}),
        scoring=ScoringSettings(method="nap"),
    )
    calibration, loaded = load_calibration(folder), load_small("ClsNet")
    assert isinstance(loaded.module, ClsNet)
    assert loaded.feature_site.kind == "cls_attention"
    seen = loaded.forward(pixels(loaded))
    patches = loaded.feature_site.shape[2]
    # NAP is their largest, and all that is taken of them.
    attention = np.zeros((len(PNGS), patches), np.float32)
    attention[:, 1] = seen.nap.numpy()
    arrays = {"logits": seen.logits.numpy(), "feature_map": attention}
    known = known_outputs(calibration, elsewhere())
    found = rows_of_outputs(calibration, known, stream_of(arrays, "metadata"))
    expected = rows_of_images(calibration, loaded)
    assert [row["ood_p_value"] for row in found] == [row["ood_p_value"] for row in expected]


def test_a_calibration_from_images_is_taken_where_the_user_says_so(
    calibration: Calibration, head: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=r"made from images.* cannot be checked"):
        known_outputs(calibration, elsewhere(head, images=False))
    with pytest.raises(CalibrationError, match="react takes the last linear layer"):
        known_outputs(calibration, elsewhere())
    with pytest.raises(ModelError, match="2 class names"):
        known_outputs(calibration, elsewhere(head, class_names=("a", "b")))
    save_file({"weight": torch.ones(3, 9)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"\(3, 9\), at calibration it was of \(3, 4\)"):
        known_outputs(calibration, elsewhere(tmp_path / "other.safetensors"))
    known = known_outputs(calibration, elsewhere(head))
    assert known.model.fingerprint != calibration.document.model.fingerprint
    assert known.shapes == OutputShapes((3,), 4, (4, 8, 8), needs_features=True)


def test_a_calibration_of_other_outputs_is_refused() -> None:
    elsewhere_facts = ElsewhereFacts(features=None, are_means=False)
    facts = MODEL.model_copy(update={"elsewhere": elsewhere_facts, "preprocessing": None})
    calibration = calibration_of(range(9), range(9), model=facts)
    with pytest.raises(FingerprintMismatchError, match="its name, "):
        known_outputs(calibration, elsewhere())


def softmax(logits: NDArray[np.float32], dtype: Any = np.float32) -> NDArray[np.float32]:
    shares = torch.from_numpy(logits).softmax(dim=1).numpy()
    found: NDArray[np.float32] = shares.astype(dtype).astype(np.float32)
    return found


def random_logits(rows: int, classes: int = 10, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (rows, classes)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows", [1, 7, 50])
def test_probabilities_are_refused_from_the_first_row_on(rows: int, dtype: Any) -> None:
    check = KindCheck(None)
    for seed in range(30):
        found = check(softmax(random_logits(rows, 1_000, seed), dtype))
        assert len(found) == rows
        assert all("probabilities" in (text or "") for text in found)


def test_a_row_that_sums_to_one_is_refused_until_twenty_together_do_not() -> None:
    check = KindCheck(None)
    assert all(check(softmax(random_logits(40))))
    assert check(random_logits(1)) == [None]
    # One row of logits does not make the others such.
    assert all(check(softmax(random_logits(30))))
    assert check(random_logits(19)) == [None] * 19
    mixed = np.concatenate([random_logits(19), softmax(random_logits(1)), random_logits(19)])
    assert [text is None for text in check(mixed)] == [True] * 19 + [False] + [True] * 19
    assert all(check(softmax(random_logits(3))))
    assert check(random_logits(20)) == [None] * 20
    # What was told once is not asked again: a row may look like anything by chance.
    assert check(softmax(random_logits(3))) == [None] * 3


def test_a_producer_that_sends_logits_in_place_of_votes_is_heard() -> None:
    check = KindCheck(None)
    assert all(check(np.round(random_logits(40))))
    for number in range(19):
        assert "whole numbers" in (check(random_logits(1, seed=number))[0] or "")
    assert check(random_logits(1, seed=99)) == [None]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (np.round, "whole numbers"),
        (lambda logits: 1 / (1 + np.exp(-logits)), "sigmoid"),
        (lambda logits: softmax(logits) * 100, "shares of a whole"),
    ],
)
def test_other_kinds_are_refused_once_there_are_enough_rows(make: Any, said: str) -> None:
    check = KindCheck(None)
    assert check(make(random_logits(19))) == [None] * 19
    assert said in (check(make(random_logits(1, seed=1)))[0] or "")
    assert said in (check(make(random_logits(1, seed=2)))[0] or "")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("logits", [[5.0, -3.0]], None),
        ("probabilities", [[0.25, 0.75]], [[5.0, -3.0]]),
        ("sigmoid", [[0.9, 0.8]], [[0.2, 1.5]]),
        ("log_probabilities", [[-0.1, -2.35]], [[3.0, -2.0]]),
    ],
)
def test_a_kind_that_is_set_holds_for_each_row(kind: OutputKind, good: Any, bad: Any) -> None:
    check = KindCheck(kind)
    assert check(np.array(good, np.float32)) == [None]
    if bad is not None:
        first, second = check(np.array([*good, *bad], np.float32))
        assert first is None
        assert f"model.output_kind is {kind}, and values lie in" in (second or "")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("probabilities", [0.2, 0.795], [0.2, 0.7]),
        ("probabilities", [0.2, 0.8], [0.0, 0.0]),
        ("log_probabilities", [-0.1054, -2.3026], [-0.1, -0.2]),
    ],
)
def test_probabilities_of_a_row_must_sum_to_one(kind: OutputKind, good: Any, bad: Any) -> None:
    first, second = KindCheck(kind)(np.array([good, bad], np.float32))
    assert first is None
    assert "do not sum to one" in (second or "")
    assert KindCheck(kind)(np.array([bad[:1]], np.float32)) == [None]


def test_features_that_do_not_lead_to_the_logits_are_refused(
    calibration: Calibration, head: Path
) -> None:
    loaded = load_small("SmallNet")
    assert isinstance(loaded.module, SmallNet)
    arrays = outputs_of(loaded.module, pixels(loaded))
    known = known_outputs(calibration, elsewhere(head))
    good, bad = stream_of(arrays), stream_of(arrays | {"features": arrays["features"] + 1})
    found = rows_of_outputs(calibration, known, bad, good)
    assert [row["status"] for row in found] == ["bad_batch"] * 6 + ["ok"] * 6
    assert "model.elsewhere.head is not the logits" in found[0]["error"]
    # What is as it must be twenty times is not looked at again.
    settled = rows_of_outputs(calibration, known, *[good] * 4, bad)
    assert {row["status"] for row in settled} == {"ok"}


def rounded(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    if kind == "int8":
        step = np.abs(values).max() / 127
        return np.asarray(np.round(values / step) * step, np.float32)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float8_e4m3fn
    found: NDArray[np.float32] = torch.from_numpy(values).to(dtype).float().numpy()
    return found


@pytest.mark.parametrize("classes", [3, 1_000])
@pytest.mark.parametrize("kind", ["int8", "bfloat16", "float8"])
def test_rows_of_small_logits_are_of_their_head_in_any_precision(kind: str, classes: int) -> None:
    draw = np.random.default_rng(7)
    weight = draw.normal(0, 1 / 8, (classes, 64)).astype(np.float32)
    head = Head(weight, draw.normal(0, 0.1, classes).astype(np.float32))
    features = draw.normal(0, 1, (1_000, 64)).astype(np.float32)
    logits = rounded(features, kind) @ rounded(weight, kind).T + head.bias
    assert classes > 3 or np.abs(logits).max(axis=1).min() < 0.15
    found = are_of_head(head, features, logits)
    assert found.all()
    other = Head(weight[:, ::-1].copy(), head.bias)
    assert are_of_head(other, features, logits).mean() < 0.05


def test_rows_are_of_their_head_whatever_they_come_with() -> None:
    draw = np.random.default_rng(3)
    head = Head(draw.normal(0, 1, (9, 5)).astype(np.float32), np.ones(9, np.float32))
    features = draw.normal(0, 1, (30, 5)).astype(np.float32)
    features[3] *= 1e6
    features[4] = 0
    features[5] = 3e38
    features[6] *= 1e-38
    with np.errstate(over="ignore", invalid="ignore"):
        logits = features @ head.weight.T + head.bias
        logits[10:20] += draw.normal(0, 0.3, (10, 9)).astype(np.float32)
        logits[5] = 1
    together = are_of_head(head, features, logits)
    alone = [are_of_head(head, features[n : n + 1], logits[n : n + 1])[0] for n in range(30)]
    assert together.tolist() == alone
    assert together[:10].tolist() == [n != 5 for n in range(10)]
    # One huge row does not hide that the layer is another. Features of 0 tell nothing.
    other = Head(np.roll(head.weight, 1, axis=0), head.bias)
    assert np.flatnonzero(are_of_head(other, features, logits)).tolist() == [4, 6]


def test_a_head_is_not_held_against_what_are_no_logits(tmp_path: Path, head: Path) -> None:
    folder = write_calibrated(
        tmp_path / "calibration",
        write_images(tmp_path / "images", 20),
        model=small_settings(kwargs={"name": "SoftmaxNet"}, output_kind="probabilities"),
        scoring=ScoringSettings(method="nap"),
    )
    calibration, loaded = load_calibration(folder), load_small("SmallNet")
    assert isinstance(loaded.module, SmallNet)
    arrays = outputs_of(loaded.module, pixels(loaded))
    known = known_outputs(calibration, elsewhere(head))
    found = rows_of_outputs(
        calibration, known, stream_of(arrays | {"logits": softmax(arrays["logits"])})
    )
    assert {row["status"] for row in found} == {"ok"}


def test_a_head_of_another_shape_is_refused_where_calibration_knew_none(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 9)}, tmp_path / "head.safetensors")
    calibration = calibration_of(range(9), range(9))
    with pytest.raises(ModelError, match=r"\(2, 9\), and the calibration has 2 logits and 512 f"):
        known_outputs(calibration, elsewhere(tmp_path / "head.safetensors"))


def test_probabilities_that_are_said_to_be_such_become_logits(tmp_path: Path) -> None:
    images, scoring = write_images(tmp_path / "images", 20), ScoringSettings(method="nap")
    folder = write_calibrated(tmp_path / "calibration", images, scoring=scoring)
    calibration, loaded = load_calibration(folder), load_small("SmallNet")
    assert isinstance(loaded.module, SmallNet)
    arrays = outputs_of(loaded.module, pixels(loaded))
    shares = arrays | {"logits": softmax(arrays["logits"])}
    known = known_outputs(calibration, elsewhere(output_kind="probabilities"))
    found = rows_of_outputs(calibration, known, stream_of(shares))
    plain = known_outputs(calibration, elsewhere())
    expected = rows_of_outputs(calibration, plain, stream_of(arrays))
    for one, other in zip(found, expected, strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-5)
    refused = rows_of_outputs(calibration, plain, stream_of(shares))
    assert {row["status"] for row in refused} == {"bad_batch"}
