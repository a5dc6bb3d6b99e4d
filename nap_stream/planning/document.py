"""A plan as JSON, for machines."""

import math
from typing import Any

from nap_stream.core.detection import Delay
from nap_stream.planning.expected import BestWindow, DetectorDelays, Expectation
from nap_stream.planning.findings import Findings, Share, Warned
from nap_stream.planning.rates import AlarmCount, RealRate
from nap_stream.planning.request import PlanRequest

FORMAT = "nap-stream plan"
VERSION = 1


def plan_document(
    request: PlanRequest,
    expectation: Expectation,
    findings: Findings | None,
    warnings: tuple[Warned, ...],
) -> dict[str, Any]:
    """Give everything as a tree of JSON values; delays in records, times in milliseconds."""
    plan, facts = request.plan, request.facts
    return {
        "format": FORMAT,
        "version": VERSION,
        "asked_for": {
            "false_alarms": request.words,
            "run_length": plan.run_length,
            "confidence": plan.confidence,
            "records_per_second": request.records_per_second,
            "pane_ms": request.drift.pane_ms,
        },
        "calibration": {
            "fingerprint": facts.fingerprint,
            "images": facts.size,
            "per_class": facts.per_class,
            "groups": facts.groups,
            "alpha": facts.alpha,
            "highest_flag_rate": plan.flag_rate,
            "highest_tail_rates": {str(event): rate for event, rate in plan.tail_rates},
        },
        "detectors": request.detectors,
        "detector_run_length": plan.detector_run_length,
        "drifts": [
            {"factor": factor, "flag_rate": rate}
            for factor, rate in zip(expectation.factors, expectation.rates, strict=True)
        ],
        "delays": [_detector(each) for each in expectation.detectors],
        "best_windows": [_best(each) for each in expectation.best_windows],
        "prices": [
            {
                "change": price.change,
                "highest_flag_rate": price.flag_rate,
                "ood-sequential": [_delay(each) for each in price.sequential],
                "ood-window": [_delay(each) for each in price.window],
            }
            for price in expectation.prices
        ],
        "unscored": None
        if request.drift.unscored is None
        else {
            "bound": request.drift.unscored.bound,
            "run_length": plan.run_length,
            "delays": [
                {"share": each.share, **_delay(each.delay)} for each in expectation.unscored
            ],
        },
        "stretch": None if findings is None else _stretch(findings),
        "warnings": [{"kind": each.kind, "text": each.text} for each in warnings],
    }


def _detector(found: DetectorDelays) -> dict[str, Any]:
    return {
        "detector": found.detector.value,
        "asked_window_records": found.asked_records,
        "window_records": found.window_records,
        "threshold": found.threshold,
        "delays": [_delay(each) for each in found.delays],
    }


def _delay(delay: Delay) -> dict[str, Any]:
    return {
        "never_by_design": delay.blind,
        "mean": delay.mean,
        "standard_error": delay.standard_error,
        "median": delay.median,
        "streams": delay.runs,
        "detected": delay.detected,
        "within_records": delay.horizon,
    }


def _best(best: BestWindow) -> dict[str, Any] | None:
    if best.window_records is None or best.delay is None:
        return None
    return {"window_records": best.window_records, "delay": _delay(best.delay)}


def _stretch(findings: Findings) -> dict[str, Any]:
    series = findings.series
    return {
        "topic": findings.recorded.topic,
        "from_ms": series.first_ms,
        "to_ms": series.last_ms,
        "records": series.records,
        "panes": len(series.panes),
        "keys": len(series.keys),
        "records_of_other_calibrations": findings.recorded.other_calibrations,
        "contradicting_records": findings.recorded.contradicting,
        "images_by_status": dict(sorted(findings.recorded.by_status.items())),
        "flag_rate": _share(findings.flag_rate),
        "tails": {str(event): _share(found) for event, found in findings.tails},
        "block": {
            "panes": findings.block_panes,
            "records": findings.block_records,
            "automatic": findings.automatic,
        },
        "design_effect": findings.design_effect,
        "design_effect_relative_error": findings.effect_error,
        "high_keys": [
            {"key": each.key, "records": each.records, "flagged": each.flagged}
            for each in findings.high_keys
        ],
        "high_key_count": findings.high_key_count,
        "false_alarms": [_rate(each) for each in findings.rates],
    }


def _share(share: Share) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high, "allowed": share.allowed}


def _rate(rate: RealRate) -> dict[str, Any]:
    ratio = rate.ratio
    return {
        "detector": rate.detector,
        "run_length": rate.run_length,
        "promised_rate": rate.promised,
        "resampled": _count(rate.resampled),
        "independent": _count(rate.independent),
        "ratio": None if ratio is None else dict(zip(("value", "low", "high"), ratio, strict=True)),
    }


def _count(count: AlarmCount) -> dict[str, Any]:
    low, high = count.interval
    assert math.isfinite(high)
    return {
        "alarms": count.alarms,
        "records": count.records,
        "rate": count.rate,
        "low": low,
        "high": high,
    }
