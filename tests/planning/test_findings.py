import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from nap_stream.core.panes import count_panes
from nap_stream.planning.findings import Findings, find, warnings_of
from nap_stream.planning.recorded import Recorded, RecordedSeries, merged
from nap_stream.planning.render import render_findings
from nap_stream.planning.request import ask
from nap_stream.settings.drift import DriftSettings, KeySettings
from tests.planning.streams import CAMERAS, SPACING_MS, calibration, independent, sticky

RECORDS = 20_000
DRIFT = DriftSettings(expected_run_length=1e6, keys=KeySettings())
FACTS = calibration().facts


def stretch_of(p_values: NDArray[np.float64]) -> RecordedSeries:
    numbers = np.arange(len(p_values))
    part = count_panes(
        numbers * SPACING_MS,
        p_values,
        p_values <= 0.05,
        pane_ms=1_000,
        keys=tuple(f"camera-{n}" for n in range(CAMERAS)),
        key=numbers % CAMERAS,
    )
    return merged([part], 1_000, one_per_pane=False)


def found_of(
    p_values: NDArray[np.float64],
    drift: DriftSettings = DRIFT,
    *,
    block_records: int | None = None,
    others: int = 0,
    streams: int = 0,
) -> Findings:
    return find(
        ask(drift, FACTS),
        Recorded(stretch_of(p_values), "cars", others),
        block_records=block_records,
        streams=streams,
        seed=0,
        advance=lambda _done, _total: None,
    )


def warned(findings: Findings, drift: DriftSettings = DRIFT) -> dict[str, str]:
    return {each.kind: each.text for each in warnings_of(ask(drift, FACTS), findings)}


@pytest.mark.parametrize("seed", range(3))
def test_an_independent_uniform_stretch_is_not_warned_of(seed: int) -> None:
    findings = found_of(independent(RECORDS, seed))

    assert warned(findings) == {}
    assert findings.flag_rate.low < 0.05 < findings.flag_rate.high
    assert abs(findings.design_effect - 1) < 4 * findings.effect_error
    assert findings.block_panes <= 10
    assert findings.automatic


def test_dependence_is_warned_of_with_what_to_do() -> None:
    findings = found_of(sticky(RECORDS, 0.95))

    # Of a camera (1 + 0.95) / (1 - 0.95) = 39 times the variance of independent flags.
    assert 10 < findings.design_effect < 60
    text = warned(findings)["dependent"]
    assert "drift.keys.one_per_pane: true, drift.pane_ms: " in text
    # A camera's records are 200 ms apart, and 0.95^30 is 0.2.
    pane_ms = int(text.rpartition("drift.pane_ms: ")[2].rstrip(")"))
    assert 6_000 <= pane_ms <= 30_000


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        (None, "name cameras with drift.keys"),
        (KeySettings(one_per_pane=True), "make panes longer"),
    ],
)
def test_advice_follows_the_settings(keys: KeySettings | None, advice: str) -> None:
    drift = DriftSettings(expected_run_length=1e6, keys=keys)

    assert advice in warned(found_of(sticky(RECORDS, 0.95)), drift)["dependent"]


def test_an_interval_is_wider_where_records_depend_on_each_other() -> None:
    def width(p_values: NDArray[np.float64]) -> float:
        share = found_of(p_values).flag_rate
        return share.high - share.low

    assert width(sticky(RECORDS, 0.95)) > 2.5 * width(independent(RECORDS))


def test_a_rate_that_the_calibration_does_not_allow_is_warned_of() -> None:
    p_values = independent(RECORDS)
    p_values[::20] /= 20

    kinds = warned(found_of(p_values, streams=4))

    assert kinds["flag-rate-high"].startswith("images of this stream are flagged at 9.")
    assert "the calibration allows 5.99 %: recalibrate" in kinds["flag-rate-high"]
    assert "p-value at most 0.05" in kinds["p-values-not-uniform"]
    assert "false-alarms-high" in kinds


def test_a_rate_far_below_that_of_the_calibration_is_warned_of() -> None:
    p_values = independent(RECORDS)
    p_values[p_values <= 0.03] += 0.5

    assert set(warned(found_of(p_values))) == {"flag-rate-low"}


def test_p_values_that_are_too_high_are_warned_of() -> None:
    p_values = independent(RECORDS)
    p_values[::10] = 0.95 + p_values[::10] / 20

    kinds = warned(found_of(p_values))

    assert "p-value above 0.95: 14" in kinds["p-values-not-uniform"]
    assert "flag-rate-high" not in kinds


def test_keys_that_stand_out_are_named_the_worst_first() -> None:
    p_values = independent(RECORDS)
    p_values[3::CAMERAS] *= 0.4
    p_values[7::CAMERAS] *= 0.2

    findings = found_of(p_values)

    assert [each.key for each in findings.high_keys] == ["camera-7", "camera-3"]
    assert findings.high_keys[0].records == RECORDS // CAMERAS
    assert "camera-7 25" in warned(findings)["key-rate-high"]
    assert "keys-stored-both-ways" not in warned(findings)
    stored = (*findings.series.keys[:-1], f"hmac-sha256:{'ab' * 32}")
    series = replace(findings.series, keys=stored)
    apart = replace(findings, recorded=replace(findings.recorded, series=series))
    assert "counted apart" in warned(apart)["keys-stored-both-ways"]


def test_the_block_can_be_given_in_records() -> None:
    findings = found_of(independent(RECORDS), block_records=120)

    # Panes of a second hold 50 records.
    assert (findings.block_panes, findings.block_records, findings.automatic) == (3, 150, False)


def test_rows_of_other_calibrations_are_told() -> None:
    kinds = warned(found_of(independent(RECORDS), others=12))

    assert kinds["other-calibration"].startswith("12 scored records")


def test_a_stretch_without_a_flag_is_no_error() -> None:
    findings = found_of(np.maximum(independent(RECORDS), 0.06))

    assert (findings.flag_rate.value, findings.design_effect) == (0, 1)
    assert set(warned(findings)) == {"flag-rate-low"}


@pytest.mark.parametrize("images", [50, 60, 333, 1_000])
def test_a_folder_that_is_sent_again_and_again_is_warned_of(images: int) -> None:
    looped = np.tile((np.arange(images) + 0.5) / images, RECORDS // images)
    np.random.default_rng(0).shuffle(looped[:images])
    looped = np.resize(looped[:images], RECORDS)

    findings = found_of(looped)

    assert findings.design_effect < 0.05
    assert "the same images are sent again and again" in warned(findings)["too-even"]


def test_panes_that_all_hold_the_same_share_are_printed() -> None:
    # 49 records a pane, one of them flagged: 49 * (1 / 49) is not 1 in floating point.
    p_values = np.tile(np.linspace(0.04, 1, 49), 400)
    times_ms = np.repeat(np.arange(400), 49) * 1_000
    part = count_panes(times_ms, p_values, p_values <= 0.05, pane_ms=1_000)
    stretch = merged([part], 1_000, one_per_pane=False)
    asked = ask(DriftSettings(expected_run_length=1e6), FACTS)

    findings = find(
        asked,
        Recorded(stretch, "cars", 0),
        block_records=None,
        streams=2,
        seed=0,
        advance=lambda _done, _total: None,
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(render_findings(asked, findings))

    assert (findings.design_effect, findings.block_panes) == (0, 1)
    assert isinstance(console.file, io.StringIO)
    assert "0 ± 0: flags come more evenly than those of independent" in console.file.getvalue()


@pytest.mark.parametrize("kept", [0, 0.5, 0.98])
def test_short_stretches_of_images_that_differ_are_not_too_even(kept: float) -> None:
    findings = [found_of(sticky(4_000, kept, seed)) for seed in range(20)]

    assert not any(each.is_too_even for each in findings)


def test_flags_that_contradict_p_values_are_told_first() -> None:
    recorded = Recorded(stretch_of(independent(RECORDS)), "cars", 0, 1_204, "cars/0 offset 7")
    asked = ask(DRIFT, FACTS)
    options = {"block_records": None, "streams": 0, "seed": 0}

    findings = find(asked, recorded, **options, advance=lambda _done, _total: None)  # type: ignore[arg-type]  # one dict

    first, *others = warnings_of(asked, findings)
    assert (first.kind, others) == ("flags-contradict-p-values", [])
    assert first.text.startswith("1,204 scored records are flagged against their p-value and the")
    assert "alpha of 0.05, the first at cars/0 offset 7: " in first.text


def test_a_window_that_never_fills_is_told() -> None:
    # Resampled streams have 2,000 panes of 50 records.
    for window, kinds in ((100_000, set()), (100_001, {"window-not-full"})):
        drift = DriftSettings(expected_run_length=1e6, window_records=window)
        assert set(warned(found_of(independent(RECORDS), drift, streams=2), drift)) == kinds


def test_keys_may_be_missing() -> None:
    numbers = np.arange(RECORDS)
    p_values = independent(RECORDS)
    part = count_panes(numbers * SPACING_MS, p_values, p_values <= 0.05, pane_ms=1_000)
    stretch = merged([part], 1_000, one_per_pane=False)
    drift = DriftSettings(expected_run_length=1e6)

    findings = find(
        ask(drift, FACTS),
        Recorded(stretch, "cars", 0),
        block_records=None,
        streams=0,
        seed=0,
        advance=lambda _done, _total: None,
    )

    assert (findings.high_keys, findings.high_key_count) == ((), 0)
