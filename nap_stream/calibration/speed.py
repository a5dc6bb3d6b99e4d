"""How fast a model runs in each precision and memory format on this machine, and which one it gets.

Speed alone does not choose: what predicts other classes than plain float32 is left out. How far
p-values move is told beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nap_stream.clock import Clock, Progress
from nap_stream.core.base_scores import BaseScores, evenly_spaced
from nap_stream.core.methods import NAP
from nap_stream.decode.picture import Refusal
from nap_stream.errors import ModelError
from nap_stream.feed import model_inputs
from nap_stream.image_files import chosen_images
from nap_stream.model.device_decode import DeviceDecoder
from nap_stream.model.execution import precisions_of, require_precision
from nap_stream.model.facts import AGREEMENT, Execution, MeasuredExecution, Speeds
from nap_stream.model.forward import Forward
from nap_stream.model.load import LoadedModel
from nap_stream.model.preprocessing import input_size
from nap_stream.model.sites import is_compiled
from nap_stream.settings.schema import (
    CompileMode,
    LimitSettings,
    ModelSettings,
    Precision,
    PreprocessingSettings,
)

if TYPE_CHECKING:
    from nap_stream.calibration.calibration import Calibration

GAIN = 1.05
"""How much faster than plain float32 another must be: below, the measurement does not tell."""
SAMPLE_IMAGES = 256
_SAMPLE_BYTES = 256 * 2**20
_PLAIN = Execution()
_BUDGET_S = 6.0
"""For the plain pass over the sample. On a slow model it sees fewer images, and so do the others:
one other class among fewer than 200 is too many."""
_LEAST_S = 0.5
"""Timed at least, where the sample is done sooner."""
_MOST_BATCHES = 100
_TOO_SLOW = 2.0
"""Times what plain float32 takes, after which a candidate is given up."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The model under the execution that was chosen.

    ``speeds`` is null where there was nothing to choose. ``outputs`` are those of the sample, by
    execution, of what ran.
    """

    loaded: LoadedModel
    speeds: Speeds | None
    outputs: Mapping[Execution, Forward]

    def compared(self, calibration: "Calibration", base_scores: BaseScores) -> Speeds | None:
        """The speeds, with the largest change of a p-value of each.

        ``calibration`` judges the sample, ``base_scores`` are its own, on the CPU.
        """
        if self.speeds is None:
            return None
        p_values = {
            execution: _p_values(seen, calibration, base_scores)
            for execution, seen in self.outputs.items()
        }
        rows = tuple(
            replace(
                row,
                p_value_change=float(
                    np.abs(p_values[row.execution] - p_values[_PLAIN]).max(initial=0.0)
                ),
            )
            if row.execution in p_values
            else row
            for row in self.speeds.rows
        )
        return replace(self.speeds, rows=rows)


def _p_values(
    seen: Forward, calibration: "Calibration", base_scores: BaseScores
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    found = base_scores(seen.logits, seen.features)
    values = {NAP: seen.nap.numpy()} | {str(name): score.numpy() for name, score in found.items()}
    return calibration.judge(values, seen.logits.argmax(dim=1).numpy()).ood_p_value


def sample_of(
    images: Path,
    count: int,
    preprocessing: PreprocessingSettings,
    limits: LimitSettings,
    on_device: DeviceDecoder | None = None,
) -> torch.Tensor:
    """Pixels of some of ``count`` images of a source, evenly spaced; those that can be decoded.

    ``images`` is that of `chosen_images`, ``on_device`` that of `model_inputs`.

    Returns:
        uint8, shape (n, 3, H, W) of the model's input.

    Raises:
        InputDataError: See `chosen_images`.
    """
    height, width = input_size(preprocessing)
    limit = max(1, min(SAMPLE_IMAGES, _SAMPLE_BYTES // (3 * height * width)))
    wanted = set(evenly_spaced(count, limit).tolist())
    decoded = (
        model_inputs([file.data], limits, preprocessing, on_device)[0]
        for file in chosen_images(images, wanted)
    )
    pixels = [result.pixels for result in decoded if not isinstance(result, Refusal)]
    return torch.stack(pixels) if pixels else torch.zeros(0, 3, height, width, dtype=torch.uint8)


def candidates_of(settings: ModelSettings, reference: LoadedModel) -> tuple[Execution, ...]:
    """The executions that settings allow, and a device has, in order of preference.

    Of a model that its factory compiles, or whose weights are not float32, only what is asked for.

    Raises:
        ModelError: The precision that is asked for cannot be computed on this device.
    """
    fixed = is_compiled(reference.module) or reference.is_fixed
    if settings.precision != "auto":
        require_precision(settings.precision, reference.device)
        precisions: tuple[Precision, ...] = (settings.precision,)
    elif fixed or reference.input_dtype != torch.float32:
        precisions = ("float32",)
    else:
        precisions = precisions_of(reference.device)
    asked = settings.channels_last
    layouts = (asked,) if asked is not None else (False,) if fixed else (False, True)
    return tuple(Execution(precision, layout) for precision in precisions for layout in layouts)


def choose_execution(
    reference: LoadedModel,
    settings: ModelSettings,
    sample: Callable[[], torch.Tensor],
    batch_size: int,
    *,
    clock: Clock,
    advance: Progress | None = None,
) -> Choice:
    """Measure what settings leave open, and give the model under the best of it.

    That is the fastest whose predictions agree with plain float32; plain float32 itself, where it
    is allowed and no other is clearly faster. Nothing is measured where settings allow nothing
    else, and where the sample is empty.

    Args:
        reference: The model in plain float32.
        settings: What is asked for. A compiled model is compiled for the choice; where that fails,
            or gives what is not finite, the model stays eager, and its row says why.
        sample: Gives pixels, uint8 (n, 3, H, W); called if there is something to measure.
        batch_size: Images a batch.
        clock: Times the passes.
        advance: Told how many of how many executions were measured.

    Raises:
        ModelError: Everything that is allowed fails.
    """
    allowed = candidates_of(settings, reference)
    if allowed == (_PLAIN,) and settings.compile == "off":
        return Choice(reference, None, {})
    pixels = sample()
    if not len(pixels):
        return Choice(_under(reference, allowed[0]), None, {})
    bench = _Bench(pixels, batch_size, clock)
    measured = dict.fromkeys((_PLAIN, *allowed))
    rows: list[MeasuredExecution] = []
    for number, execution in enumerate(measured):
        if advance is not None:
            advance(number, len(measured))
        rows.append(bench.row(reference, execution, patient=len(allowed) == 1))
    if advance is not None:
        advance(len(measured), len(measured))
    loaded = _under(reference, _best(rows, allowed))
    if settings.compile != "off":
        loaded, row = bench.compiled(loaded, settings.compile)
        rows.append(row)
    speeds = Speeds(
        device=_device_name(reference.device),
        images=len(bench.pixels),
        batch_size=batch_size,
        torch_threads=torch.get_num_threads(),
        rows=tuple(rows),
    )
    return Choice(loaded, speeds, bench.outputs)


def _under(reference: LoadedModel, execution: Execution) -> LoadedModel:
    return reference if execution == _PLAIN else reference.under(execution)


def _best(rows: list[MeasuredExecution], allowed: tuple[Execution, ...]) -> Execution:
    """The execution to take of those that were measured.

    Raises:
        ModelError: All that are allowed have failed.
    """
    running = [row for row in rows if row.execution in allowed and row.images_per_s is not None]
    if not running:
        failed = next(row for row in rows if row.execution in allowed)
        raise ModelError(
            failed.problem,
            f"the model in {failed.execution}",
            "Set model.precision: auto and model.channels_last: null, or another of each",
        )
    agreeing = [row for row in running if (row.agreement or 0.0) >= AGREEMENT]
    if not agreeing:
        return max(running, key=lambda row: row.agreement or 0.0).execution
    best = max(agreeing, key=_speed)
    plain = next((row for row in agreeing if row.execution == _PLAIN), None)
    if plain is not None and _speed(best) < GAIN * _speed(plain):
        return _PLAIN
    return best.execution


def _speed(row: MeasuredExecution) -> float:
    return row.images_per_s or 0.0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class _Bench:
    """Runs executions over one sample, plain float32 first, and keeps what they give."""

    def __init__(self, pixels: torch.Tensor, batch_size: int, clock: Clock) -> None:
        # Whole batches, so that all passes are of one shape.
        whole = len(pixels) - len(pixels) % batch_size
        self.pixels = pixels[:whole] if whole else pixels
        self.outputs: dict[Execution, Forward] = {}
        self._batch_size, self._clock = batch_size, clock
        self._plain_s = 0.0

    def row(
        self, reference: LoadedModel, execution: Execution, *, patient: bool
    ) -> MeasuredExecution:
        """Measure one execution; ``patient`` goes on however slow it is."""
        if execution == _PLAIN:
            seen, per_second, self._plain_s = self._run(reference, stop_s=_BUDGET_S)
            self.pixels = self.pixels[: len(seen.nap)]
            self.outputs[execution] = seen
            return MeasuredExecution(execution, per_second, 1.0)
        stop_s = None if patient else max(_LEAST_S, _TOO_SLOW * self._plain_s)
        try:
            loaded = reference.under(execution)
            seen, per_second, _ = self._run(loaded, stop_s=stop_s)
        except Exception as error:  # noqa: BLE001  what a model raises in a precision it was not made for
            return MeasuredExecution(execution, problem=_problem(error))
        return self._compared(execution, seen, per_second)

    def compiled(
        self, eager: LoadedModel, mode: CompileMode
    ) -> tuple[LoadedModel, MeasuredExecution]:
        """Compile a model and measure it; where it cannot be used so, the eager model stays."""
        asked = replace(eager, execution=replace(eager.execution, compile=mode))
        loaded = asked.compiled(self._batch_size)
        if loaded.batch_size is None:
            row = MeasuredExecution(asked.execution, problem="it cannot be compiled here")
            return eager, row
        try:
            seen, per_second, _ = self._run(loaded, stop_s=None)
            row = self._compared(asked.execution, seen, per_second)
        except Exception as error:  # noqa: BLE001  compiled code raises what it likes
            row = MeasuredExecution(asked.execution, problem=_problem(error))
        return (eager if row.problem else loaded), row

    def _compared(
        self, execution: Execution, seen: Forward, per_second: float
    ) -> MeasuredExecution:
        if len(seen.nap) < len(self.pixels):
            return MeasuredExecution(execution, problem="much slower than float32, contiguous")
        plain = self.outputs[_PLAIN]
        if bool((_is_finite(plain) & ~_is_finite(seen)).any()):
            return MeasuredExecution(execution, problem="it gives values that are not finite")
        self.outputs[execution] = seen
        same = seen.logits.argmax(dim=1) == plain.logits.argmax(dim=1)
        return MeasuredExecution(execution, per_second, float(same.double().mean()))

    def _run(self, loaded: LoadedModel, *, stop_s: float | None) -> tuple[Forward, float, float]:
        """Outputs on the CPU, images/s of the quickest batch, and seconds of the sample's passes.

        What else the machine does makes batches slower, never quicker.
        Outputs end early where the passes take longer than ``stop_s``, after two batches at least.
        """
        batches = torch.split(self.pixels, self._batch_size)
        loaded.forward(batches[0])
        parts: list[Forward] = []
        seconds: list[float] = []
        for batch in batches:
            if stop_s is not None and len(parts) > 1 and sum(seconds) > stop_s:
                break
            start = self._clock.monotonic()
            parts.append(loaded.forward(batch).cpu())
            seconds.append(self._clock.monotonic() - start)
        passes_s = sum(seconds)
        while sum(seconds) < _LEAST_S and len(seconds) < _MOST_BATCHES:
            start = self._clock.monotonic()
            loaded.forward(batches[0]).cpu()
            seconds.append(self._clock.monotonic() - start)
        batch_s = max(min(seconds), 1e-9)
        return Forward.join(parts), len(batches[0]) / batch_s, passes_s


def _is_finite(seen: Forward) -> torch.Tensor:
    finite = seen.logits.isfinite().all(dim=1) & seen.nap.isfinite()
    return finite if seen.features is None else finite & seen.features.isfinite().all(dim=1)


def _problem(error: Exception) -> str:
    return error.problem if isinstance(error, ModelError) else repr(error)
