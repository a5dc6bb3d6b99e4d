from nap_stream.core.detection import DetectionPlan, step_limits, window_step


def window_limits(plan: DetectionPlan, records: int) -> tuple[int, int]:
    """Flags from which on a full window of so many records fires, and below which no longer."""
    return step_limits(plan, window_step(plan, records))
