"""Choosing how a model computes: by a clock that a model moves on, and on real images."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import nn

from nap_stream.calibration import speed
from nap_stream.calibration.artifact import load_calibration, write_calibration
from nap_stream.calibration.run import calibrate
from nap_stream.calibration.speed import Choice, candidates_of, choose_execution, sample_of
from nap_stream.cli.calibrate import show_calibration
from nap_stream.clock import ManualClock, SystemClock
from nap_stream.errors import CalibrationError, ModelError
from nap_stream.model import execution as execution_module
from nap_stream.model.execution import reduced_type, require_execution
from nap_stream.model.facts import AGREEMENT, Execution, MeasuredExecution, Speeds
from nap_stream.model.forward import Forward
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.weights import weights_of
from nap_stream.ood_scorer import OODScorer
from nap_stream.settings.schema import (
    LimitSettings,
    ModelSettings,
    PreprocessingSettings,
    ScoringSettings,
)
from tests.support.shared_data import shared_data
from tests.support.small_calibration import (
    calibration_of,
    calibration_request,
    scorer_of,
    write_images,
)
from tests.support.small_models import SIZE
from tests.support.small_settings import CPU, load_small, small_settings

PLAIN, LAST = Execution(), Execution(channels_last=True)
HALF, BOTH = Execution("bfloat16"), Execution("bfloat16", channels_last=True)
OPEN: dict[str, Any] = {"precision": "auto", "channels_last": None}


@pytest.fixture(autouse=True)
def _a_cpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "precisions_of", lambda _device: ("float32", "bfloat16"))


def pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


Altered = Callable[[Execution, Forward], Forward]


def choose(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[Execution, float],
    altered: Altered = lambda _execution, seen: seen,
    *,
    count: int = 16,
    **settings: Any,
) -> Choice:
    """Choose for a model whose batches of 8 take so many seconds in each execution."""
    clock = ManualClock()
    forward = LoadedModel.forward

    def timed(self: LoadedModel, batch: torch.Tensor) -> Forward:
        clock.advance(seconds[self.execution])
        return altered(self.execution, forward(self, batch))

    monkeypatch.setattr(LoadedModel, "forward", timed)
    return choose_execution(
        load_small("SmallNet"),
        small_settings(**(OPEN | settings)),
        lambda: pixels(count),
        8,
        clock=clock,
    )


def speeds_of(choice: Choice) -> dict[Execution, MeasuredExecution]:
    assert choice.speeds is not None
    return {row.execution: row for row in choice.speeds.rows}


def test_the_fastest_that_agrees_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {PLAIN: 1.0, LAST: 0.8, HALF: 0.9, BOTH: 0.5})
    assert choice.loaded.execution == BOTH
    rows = speeds_of(choice)
    assert list(rows) == [PLAIN, LAST, HALF, BOTH]
    assert [row.images_per_s for row in rows.values()] == pytest.approx([8, 10, 8 / 0.9, 16])
    assert rows[PLAIN].agreement == 1.0
    assert choice.speeds is not None
    assert (choice.speeds.device, choice.speeds.images, choice.speeds.batch_size) == ("cpu", 16, 8)


def test_plain_float32_stays_unless_another_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = choose(monkeypatch, {PLAIN: 1.0, LAST: 0.97, HALF: 0.96, BOTH: 0.99})
    assert choice.loaded.execution == PLAIN


def other_class(execution: Execution, seen: Forward) -> Forward:
    if reduced_type(execution) is None:
        return seen
    return replace(seen, logits=seen.logits.roll(1, dims=1))


def not_finite(execution: Execution, seen: Forward) -> Forward:
    if execution != BOTH:
        return seen
    return replace(seen, nap=torch.full_like(seen.nap, torch.nan))


def failing(execution: Execution, seen: Forward) -> Forward:
    if execution == BOTH:
        raise RuntimeError("no kernel for this")
    return seen


FASTER_AND_FASTER = {PLAIN: 1.0, LAST: 0.8, HALF: 0.6, BOTH: 0.5}


def test_what_predicts_other_classes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, FASTER_AND_FASTER, other_class)
    assert choice.loaded.execution == LAST
    assert (speeds_of(choice)[BOTH].agreement or 0.0) < AGREEMENT


@pytest.mark.parametrize(
    ("altered", "problem"),
    [(not_finite, "not finite"), (failing, "RuntimeError: no kernel for this")],
)
def test_what_fails_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, altered: Altered, problem: str
) -> None:
    choice = choose(monkeypatch, FASTER_AND_FASTER, altered)
    assert choice.loaded.execution == HALF
    row = speeds_of(choice)[BOTH]
    assert problem in row.problem
    assert row.images_per_s is row.agreement is None
    assert BOTH not in choice.outputs


def test_what_is_much_slower_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {PLAIN: 0.5, LAST: 0.4, HALF: 30.0, BOTH: 30.0}
    choice = choose(monkeypatch, slow, count=64)
    assert choice.loaded.execution == LAST
    assert "much slower" in speeds_of(choice)[HALF].problem


def test_a_slow_model_sees_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {PLAIN: 4.0, LAST: 3.0, HALF: 2.0, BOTH: 2.0}, count=256)
    assert choice.speeds is not None
    assert choice.speeds.images == 16
    assert {len(seen.nap) for seen in choice.outputs.values()} == {16}


def test_what_settings_fix_is_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {PLAIN: 1.0, LAST: 0.8, HALF: 2.0, BOTH: 3.0}
    fixed = choose(monkeypatch, every, precision="bfloat16", channels_last=False)
    assert list(speeds_of(fixed)) == [PLAIN, HALF]
    assert fixed.loaded.execution == HALF
    half_open = choose(monkeypatch, every, precision="float32")
    assert list(speeds_of(half_open)) == [PLAIN, LAST]
    assert half_open.loaded.execution == LAST


def test_nothing_is_measured_where_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {}, precision="float32", channels_last=False)
    assert (choice.speeds, choice.loaded.execution) == (None, PLAIN)


COMPILED = Execution(compile="default")
COMPILING: dict[str, Any] = {"precision": "float32", "channels_last": False, "compile": "default"}


def as_it_is(module: nn.Module, **_options: object) -> nn.Module:
    return module


def without_compiler(_module: nn.Module, **_options: object) -> nn.Module:
    raise RuntimeError("no C++ compiler")


def compiled_not_finite(execution: Execution, seen: Forward) -> Forward:
    if execution != COMPILED:
        return seen
    return replace(seen, nap=torch.full_like(seen.nap, torch.nan))


def compiled_fails_on_images(execution: Execution, seen: Forward) -> Forward:
    # Compiling runs it on zeros, which are all one score.
    if execution == COMPILED and float(seen.nap.max() - seen.nap.min()) > 0:
        raise RuntimeError("an illegal instruction")
    return seen


def test_a_compiled_model_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", as_it_is)
    choice = choose(monkeypatch, {PLAIN: 1.0, COMPILED: 0.5}, **COMPILING)
    assert (choice.loaded.execution, choice.loaded.batch_size) == (COMPILED, 8)
    assert speeds_of(choice)[COMPILED].images_per_s == pytest.approx(16)
    assert choice.speeds is not None
    assert choice.speeds.warnings(COMPILED) == ()


@pytest.mark.parametrize(
    ("compiler", "altered", "problem"),
    [
        (without_compiler, lambda _execution, seen: seen, "it cannot be compiled here"),
        (as_it_is, compiled_not_finite, "it gives values that are not finite"),
        (as_it_is, compiled_fails_on_images, "RuntimeError('an illegal instruction')"),
    ],
)
def test_a_compiled_model_that_cannot_be_used_stays_eager(
    monkeypatch: pytest.MonkeyPatch,
    compiler: Callable[..., nn.Module],
    altered: Altered,
    problem: str,
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    choice = choose(monkeypatch, {PLAIN: 1.0, COMPILED: 0.5}, altered, **COMPILING)
    assert (choice.loaded.execution, choice.loaded.batch_size) == (PLAIN, None)
    row = speeds_of(choice)[COMPILED]
    assert (row.problem, row.images_per_s) == (problem, None)
    assert COMPILED not in choice.outputs
    assert choice.speeds is not None
    (warning,) = choice.speeds.warnings(PLAIN)
    assert warning.endswith(f"without torch.compile, which is configured: {problem}")
    # What was configured then may be configured still.
    settings = small_settings(**COMPILING)
    require_execution(choice.loaded.execution, settings, choice.speeds)
    with pytest.raises(CalibrationError, match=r"model\.compile is max-autotune, not off"):
        require_execution(PLAIN, small_settings(compile="max-autotune"), choice.speeds)


def test_what_is_configured_is_taken_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(
        monkeypatch, FASTER_AND_FASTER, other_class, precision="bfloat16", channels_last=True
    )
    assert choice.loaded.execution == BOTH
    assert choice.speeds is not None
    (warning,) = choice.speeds.warnings(BOTH)
    assert warning.startswith("in bfloat16, channels_last, which is configured, the predicted")
    assert choice.speeds.warnings(PLAIN) == ()


def test_what_is_configured_and_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no kernel for this.*model\.precision: auto"):
        choose(monkeypatch, FASTER_AND_FASTER, failing, precision="bfloat16", channels_last=True)


def test_without_an_image_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(monkeypatch, {}, count=0)
    assert (choice.speeds, choice.loaded.execution) == (None, PLAIN)


def test_models_that_leave_no_choice() -> None:
    settings = small_settings(**OPEN)
    assert candidates_of(settings, load_small("SmallNet")) == (PLAIN, LAST, HALF, BOTH)
    compiled = load_model(small_settings("compiled"), CPU)
    assert candidates_of(settings, compiled) == (PLAIN,)
    half = load_model(small_settings("half"), CPU)
    assert candidates_of(settings, half) == (PLAIN, LAST)
    with pytest.raises(ModelError, match="TF32 is of NVIDIA GPUs"):
        candidates_of(small_settings(precision="tf32"), half)


def test_the_sample_is_of_all_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 9)
    (folder / "0004.png").write_text("a note")
    found = sample_of(folder, 9, small_settings().preprocessing, LimitSettings())
    assert found.shape == (8, 3, SIZE, SIZE)
    assert found.dtype == torch.uint8
    few = sample_of(folder, 900, small_settings().preprocessing, LimitSettings())
    assert len(few) == 3


def shown(folder: Path) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    show_calibration(load_calibration(folder), folder, console)
    return console.export_text()


@pytest.mark.slow
@pytest.mark.skipif(
    not execution_module._cpu_has_bfloat16(),
    reason="this processor has no instructions for bfloat16: it is refused as much slower",
)
def test_a_calibration_on_real_images_says_what_was_measured(tmp_path: Path) -> None:
    table = pq.read_table(shared_data("cifar10_test.parquet")).slice(0, 260)
    pq.write_table(table, tmp_path / "held-out.parquet")
    model = ModelSettings(
        factory="tests.support.cifar_models:resnet20",
        weights=shared_data("checkpoints/resnet20_cifar10.safetensors"),
        preprocessing=PreprocessingSettings(resize=32, crop=32),
        precision="bfloat16",
    )
    told: list[tuple[int, int | None]] = []
    calibration = calibrate(
        calibration_request(
            tmp_path / "held-out.parquet", model=model, scoring=ScoringSettings(method="energy")
        ),
        device=CPU,
        clock=SystemClock(),
        measuring_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    document = calibration.document
    assert document.speeds is not None
    plain, *others = document.speeds.rows
    assert (plain.execution, plain.agreement, plain.p_value_change) == (PLAIN, 1.0, 0.0)
    assert [row.execution for row in others] == [HALF, BOTH]
    assert document.execution in {HALF, BOTH}
    for row in others:
        assert (row.agreement or 0.0) > 0.97
        assert 0 < (row.p_value_change or 0.0) < 0.1
        assert (row.images_per_s or 0.0) > 0
    # The weights are those of the file, whatever they are computed with.
    plain_model = load_model(model, CPU)
    assert document.model.fingerprint == plain_model.fingerprint
    assert document.model.weights_fingerprint == weights_of(plain_model.module)
    energies = calibration.values["energy"]
    assert len(np.unique(energies)) > 0.99 * len(energies)

    write_calibration(calibration, tmp_path / "made")
    assert load_calibration(tmp_path / "made").document == document
    text = shown(tmp_path / "made")
    assert "How fast the model is on cpu, 256 images in batches of 8" in text
    assert f"{document.execution}" in text
    assert "taken" in text

    # A user's own float32 module gives the scores that the stream's model gives.
    pixels = sample_of(tmp_path / "held-out.parquet", 260, model.preprocessing, LimitSettings())
    found = OODScorer(tmp_path / "made", plain_model.module)(pixels[:64])
    streamed = load_model(model, CPU, document.execution)
    expected = scorer_of(streamed)(pixels[:64])
    assert found.class_id.tolist() == expected.class_id.tolist()
    np.testing.assert_allclose(found.values["energy"], expected.values["energy"], rtol=1e-5)


def test_the_table_says_why_there_is_no_figure(tmp_path: Path) -> None:
    rows = (
        MeasuredExecution(PLAIN, 10.0, 1.0, 0.0),
        MeasuredExecution(HALF, problem="it gives values that are not finite"),
        MeasuredExecution(BOTH, 25.0, 0.996, 0.0123),
    )
    speeds = Speeds("cpu", 256, 32, 2, rows)
    write_calibration(
        calibration_of([1, 2, 3], [1, 2, 3], speeds=speeds, execution=BOTH), tmp_path / "made"
    )
    lines = {" ".join(line.split()) for line in shown(tmp_path / "made").splitlines()}
    assert lines >= {
        "float32, contiguous 10.0 100.0% 0.0000",
        "bfloat16, contiguous it gives values that are not finite",
        "bfloat16, channels_last 25.0 99.6% 0.0123 taken",
    }


def test_speeds_take_no_part_in_the_fingerprint() -> None:
    plain = calibration_of([1, 2, 3], [1, 2, 3])
    speeds = Speeds("cpu", 8, 8, 1, (MeasuredExecution(PLAIN, 10.0, 1.0, 0.0),))
    assert calibration_of([1, 2, 3], [1, 2, 3], speeds=speeds).fingerprint == plain.fingerprint
    assert calibration_of([1, 2, 3], [1, 2, 3], execution=BOTH).fingerprint != plain.fingerprint
