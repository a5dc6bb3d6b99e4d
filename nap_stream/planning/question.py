"""What is asked for, and what the settings and the calibration make of it."""

import dataclasses
from dataclasses import dataclass

from pydantic import ValidationError

from nap_stream.core.detection import DetectionPlan, window_firing_limit
from nap_stream.core.false_alarms import DEFAULT_FALSE_ALARMS, records_per_second
from nap_stream.core.judging import Sides
from nap_stream.drift.limits import detection_plan
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


@dataclass(frozen=True, slots=True)
class Question:
    """The promise that is asked for, of a calibration, whose rule has ``sides``.

    ``records_per_second`` is null where the promise is given in records, and where not every record
    counts.
    """

    drift: DriftSettings
    facts: CalibrationFacts
    plan: DetectionPlan
    records_per_second: float | None
    sides: Sides = Sides.ONE

    @property
    def words(self) -> str:
        """The bearable false alarms, in the operator's words or in records."""
        if self.drift.expected_run_length is not None:
            return f"one in {self.drift.expected_run_length:,.0f} records"
        return self.drift.false_alarms or DEFAULT_FALSE_ALARMS

    @property
    def detectors(self) -> int:
        """How many share the promise."""
        return round(self.plan.detector_run_length / self.plan.run_length)

    @property
    def pane_records(self) -> int:
        """Records of a pane; 1 where the rate is not known."""
        return max(1, round((self.records_per_second or 0) * self.drift.pane_ms / 1_000))


def ask(drift: DriftSettings, facts: CalibrationFacts, sides: Sides = Sides.ONE) -> Question:
    """Put settings and calibration together.

    Args:
        drift: What is asked for.
        facts: The calibration.
        sides: Of its rule.

    Raises:
        ConfigError: See `nap_stream.drift.limits.detection_plan`.
    """
    rate = None
    if drift.expected_run_length is None and not is_thinned(drift):
        rate = records_per_second(drift.false_alarms or DEFAULT_FALSE_ALARMS)
    return Question(drift, facts, detection_plan(drift, facts), rate, sides)


def is_thinned(drift: DriftSettings) -> bool:
    """Whether one record of each key counts in a pane."""
    return drift.keys is not None and drift.keys.one_per_pane


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
    return dataclasses.replace(
        plan, run_length=run_length, detector_run_length=run_length * detectors
    )


def of_half_the_false_alarms(question: Question) -> Question:
    """The same with half as many false alarms."""
    plan = with_run_length(question.plan, 2 * question.plan.run_length)
    return dataclasses.replace(question, plan=plan)


def firing_limit(plan: DetectionPlan, pane_records: int) -> tuple[int, int]:
    """Give the records of a full window of whole panes, and the flags at which it fires."""
    panes = -(-plan.window_records // pane_records)
    records = panes * pane_records
    return records, window_firing_limit(plan, records)
