"""What the detectors are set to: the settings and the calibration put together."""

from nap_stream.core.detection import DetectionPlan, plan_detection, window_firing_limit
from nap_stream.core.tail_events import TAIL_EVENTS
from nap_stream.errors import ConfigError
from nap_stream.records import CalibrationFacts
from nap_stream.settings import DriftSettings


def detection_plan(settings: DriftSettings, calibration: CalibrationFacts) -> DetectionPlan:
    """Share the promise of the settings out among the detectors.

    Raises:
        ConfigError: The window is too small to fire even if all its records were flagged.
    """
    tails = zip(TAIL_EVENTS, calibration.tail_laws, strict=True)
    plan = plan_detection(
        run_length=settings.run_length,
        confidence=settings.confidence,
        window_records=settings.window_records,
        resolve_probability=settings.resolve_probability,
        flag_laws=calibration.flag_rate_laws,
        tail_laws=[(event, laws) for event, laws in tails if laws],
        groups=calibration.groups,
        with_keys=settings.keys is not None,
        calibration_fingerprint=calibration.fingerprint,
    )
    if window_firing_limit(plan, settings.window_records) > settings.window_records:
        raise ConfigError(
            f"a window of {settings.window_records} records can never fire at a run length of "
            f"{settings.run_length:g} records between false alarms",
            "drift.window_records",
            "Make the window larger",
        )
    return plan
