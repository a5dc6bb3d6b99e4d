"""Delays as bars in characters."""

import math

from rich.text import Text

from nap_stream.alert.plain import percent
from nap_stream.core.alert_state import Detector
from nap_stream.core.delays import Delay
from nap_stream.planning.expected import DetectorDelays, Expectation
from nap_stream.planning.words import count, duration, factor

NAMES = {
    Detector.OOD_WINDOW: "rolling window",
    Detector.OOD_SEQUENTIAL: "e-detector of flags",
    Detector.SCORE_SHIFT: "e-detector of scores",
}
_SHORTEST = 10
_LONGEST_BAR = 40


def detector_name(found: DetectorDelays) -> str:
    """A detector in words, with the records that a window was asked for and those of its panes."""
    if found.window_records is None or found.asked_records is None:
        return NAMES[found.detector]
    name = f"{NAMES[found.detector]}, {found.asked_records:,}"
    is_rounded = found.asked_records != found.window_records
    return f"{name} ({found.window_records:,} in whole panes)" if is_rounded else name


def drift_name(expectation: Expectation, number: int) -> str:
    """A drift in words: how many times as high the flag rate is, and how high."""
    return f"{factor(expectation.factors[number])}x, {percent(expectation.rates[number])}"


def delay_words(delay: Delay, records_per_second: float | None) -> str:
    """How soon a drift is seen: records, with their error, and time where the rate is known."""
    if delay.blind:
        return "never, by design"
    within = f"within {count(delay.horizon)}"
    if not delay.detected:
        return f"not {within}"
    share = percent(delay.detected / delay.runs)
    if delay.typical is None:
        return f"{share} {within}"
    words = count(delay.typical)
    if delay.standard_error is not None:
        words += f" ± {count(delay.standard_error)}"
    if delay.mean is None:
        words = f"median {words}\n{share} {within}"
    if records_per_second is None:
        return words
    return f"{words}\n{duration(delay.typical / records_per_second)}"


def bars(expectation: Expectation) -> Text:
    """A bar for each drift and detector, on a logarithmic scale."""
    delays = [delay for found in expectation.detectors for delay in found.delays]
    longest = max((delay.typical or 0 for delay in delays), default=0)
    width = max(len(detector_name(found)) for found in expectation.detectors)
    text = Text(f"Records from a drift to its alarm, logarithmic from {_SHORTEST} on", "bold")
    for number in range(len(expectation.rates)):
        text.append(f"\n{drift_name(expectation, number)}", "default")
        for found in expectation.detectors:
            text.append(f"\n  {detector_name(found):<{width}} ", "not bold dim")
            text.append_text(_bar(found.delays[number], longest))
    return text


def _bar(delay: Delay, longest: float) -> Text:
    if delay.typical is None:
        return Text(delay_words(delay, None), "not bold yellow")
    span = math.log(max(longest / _SHORTEST, 2))
    filled = math.log(max(delay.typical / _SHORTEST, 1)) / span
    bar = Text("█" * max(1, round(_LONGEST_BAR * filled)), "cyan")
    return bar.append(f" {count(delay.typical)}", "not bold")
