"""What is asked for, what settings and calibration make of it, and numbers as people say them."""

from dataclasses import dataclass, replace

from pydantic import ValidationError

from nap_stream.core.alert_state import DEFAULT_FALSE_ALARMS, records_per_second
from nap_stream.core.detection import DetectionPlan, window_firing_limit
from nap_stream.core.tails import Sides
from nap_stream.drift.detectors import detection_plan
from nap_stream.drift.records import CalibrationFacts
from nap_stream.errors import ConfigError
from nap_stream.settings.drift import MAX_WINDOW_RECORDS, DriftSettings

OTHER_WINDOWS = (0.25, 4.0)
"""The sizes beside the configured window, as shares of it; so are the next."""
SEARCHED_WINDOWS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SMALLEST_WINDOW = 20


def usual_windows(configured: int) -> tuple[int, ...]:
    """The configured window, and a smaller and a larger one, ascending."""
    return tuple(sorted({configured, *_sizes(configured, OTHER_WINDOWS)}))


def searched_windows(configured: int) -> tuple[int, ...]:
    """The sizes among which the one that sees a drift first is sought, ascending."""
    return tuple(sorted(_sizes(configured, SEARCHED_WINDOWS)))


def _sizes(configured: int, shares: tuple[float, ...]) -> set[int]:
    sizes = (max(SMALLEST_WINDOW, round(configured * share)) for share in shares)
    return {min(MAX_WINDOW_RECORDS, size) for size in sizes}


_UNITS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_DIGITS = 3
_SHORTEST_S = 0.001


def count(number: float) -> str:
    """Three digits of a number of records, such as 7,650; of small ones the whole number."""
    digits = len(str(round(abs(number))))
    return f"{round(number, min(0, _DIGITS - digits)):,.0f}"


def in_largest_unit(seconds: float) -> str:
    """A time in its largest unit, such as 2.6 min."""
    for size, name in _UNITS:
        if seconds >= 2 * size:
            return f"{factor(seconds / size)} {name}"
    return f"{seconds:.2g} s" if seconds >= _SHORTEST_S else "less than 1 ms"


def factor(ratio: float) -> str:
    """Three digits of a ratio, such as 1.5 or 73,900."""
    return count(ratio) if ratio >= 10**_DIGITS - 0.5 else f"{ratio:.{_DIGITS}g}"


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The promise that is asked for, and the calibration, whose rule has ``sides``.

    ``records_per_second`` is null where the promise is in records, or not every record counts.
    """

    drift: DriftSettings
    facts: CalibrationFacts
    plan: DetectionPlan
    records_per_second: float | None
    sides: Sides = Sides.ONE

    @property
    def words(self) -> str:
        """The tolerated false alarms, in the operator's words or in records."""
        if self.drift.expected_run_length is not None:
            return f"one in {self.drift.expected_run_length:,.0f} records"
        return self.drift.false_alarms or DEFAULT_FALSE_ALARMS

    @property
    def detectors(self) -> int:
        """How many detectors share the promise."""
        return round(self.plan.detector_run_length / self.plan.run_length)

    @property
    def pane_records(self) -> int:
        """Records of a pane; 1 where the rate is not known."""
        return max(1, round((self.records_per_second or 0) * self.drift.pane_ms / 1_000))


def ask(drift: DriftSettings, facts: CalibrationFacts, sides: Sides = Sides.ONE) -> PlanRequest:
    """Put settings and calibration together.

    Raises:
        ConfigError: See `nap_stream.drift.detectors.detection_plan`.
    """
    rate = None
    if drift.expected_run_length is None and not drift.one_per_pane:
        rate = records_per_second(drift.false_alarms or DEFAULT_FALSE_ALARMS)
    return PlanRequest(drift, facts, detection_plan(drift, facts), rate, sides)


def with_changes(
    drift: DriftSettings,
    *,
    false_alarms: str | None,
    expected_run_length: float | None,
    confidence: float | None,
) -> DriftSettings:
    """Lay what the command line says over the settings.

    Raises:
        ConfigError: A value is wrong, or both forms of the promise are given.
    """
    values = drift.model_dump()
    if false_alarms is not None or expected_run_length is not None:
        values |= {"false_alarms": false_alarms, "expected_run_length": expected_run_length}
    if confidence is not None:
        values["confidence"] = confidence
    try:
        return DriftSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "false-alarms"
        raise ConfigError(first["msg"].removeprefix("Value error, "), f"--{name}") from None


def with_run_length(plan: DetectionPlan, run_length: float) -> DetectionPlan:
    """The same detectors at another run length A, in records."""
    detectors = plan.detector_run_length / plan.run_length
    return replace(plan, run_length=run_length, detector_run_length=run_length * detectors)


def of_half_the_false_alarms(request: PlanRequest) -> PlanRequest:
    """The same with half as many false alarms."""
    return replace(request, plan=with_run_length(request.plan, 2 * request.plan.run_length))


def firing_limit(plan: DetectionPlan, pane_records: int) -> tuple[int, int]:
    """Give the records of a full window of whole panes, and the flags at which it fires."""
    records = -(-plan.window_records // pane_records) * pane_records
    return records, window_firing_limit(plan, records)
