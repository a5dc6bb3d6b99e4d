from datetime import UTC, datetime

import numpy as np
import pytest

from nap_stream.baselines.compare import compare, query_like
from nap_stream.core.blocks import Blocks
from nap_stream.core.hidden_keys import HiddenKeys, Stored
from nap_stream.core.tails import BIN_COUNT
from nap_stream.errors import ConfigError
from tests.baselines.streams import HOUR_MS, images
from tests.support.baseline_calibrations import blocks_of_stream, with_baseline


def keyed(shares: dict[str, list[int]], start_ms: int = 0) -> Blocks:
    """Blocks of an hour, a hundred records each, of which so many are flagged."""
    names = sorted(shares)
    flagged = np.concatenate([shares[name] for name in names]).astype(np.int64)
    sizes = [len(shares[name]) for name in names]
    bins = np.zeros((len(flagged), BIN_COUNT), np.int64)
    bins[:, 0], bins[:, 5] = flagged, 100 - flagged
    starts = np.concatenate([start_ms + np.arange(size) * HOUR_MS for size in sizes])
    number = np.repeat(np.arange(len(names)), sizes)
    return Blocks(number, starts, np.full(len(flagged), 100), flagged, bins, tuple(names), HOUR_MS)


def test_each_key_is_compared_with_itself() -> None:
    baseline = keyed({"": [4, 6] * 10, "a": [4, 6] * 10})
    later = keyed({"": [14, 16] * 5, "a": [4, 6] * 5, "b": [50] * 3})
    stream, own, new = compare(baseline, later, by_month=False)
    assert (stream.key, stream.blocks, stream.records, stream.month) == ("", 10, 1_000, None)
    assert stream.effect is not None
    assert (stream.effect.share, stream.effect.baseline_share) == (0.15, 0.05)
    assert stream.effect.difference == pytest.approx(0.1)
    assert 0.08 < stream.effect.low < 0.1 < stream.effect.high < 0.12
    assert own.effect is not None
    assert own.effect.low < 0 < own.effect.high
    assert (new.key, new.effect) == ("b", None)
    assert new.document()["share"] is None
    assert stream.document()["difference"] == pytest.approx(0.1)


def test_months_are_those_in_which_blocks_begin() -> None:
    start = round(datetime(2026, 5, 31, 22, tzinfo=UTC).timestamp() * 1000)
    later = keyed({"": [10, 10, 20, 20, 20]}, start)
    may, june = compare(keyed({"": [5] * 12}), later, by_month=True)
    assert [(each.month, each.blocks) for each in (may, june)] == [("2026-05", 2), ("2026-06", 3)]
    assert june.effect is not None
    assert june.effect.difference == pytest.approx(0.15)


def test_an_interval_needs_two_blocks() -> None:
    (found,) = compare(keyed({"": [5] * 12}), keyed({"": [10]}), by_month=False)
    told = found.document()
    assert (told["low"], told["high"], told["difference"]) == (None, None, pytest.approx(0.05))


def test_a_calibration_without_a_baseline_has_nothing_to_compare_with() -> None:
    with pytest.raises(ConfigError, match="has no baseline to compare with"):
        query_like(images(), None, 0, 1)


def test_records_are_counted_as_those_of_the_baseline_were() -> None:
    calibration = with_baseline(
        images(), np.arange(100.0), blocks_of_stream([5] * 12), by="header:lens", one_per_pane=True
    )
    query = query_like(calibration, None, 3, 4)
    assert (query.topic, query.since_ms, query.until_ms, query.pane_ms) == ("cars", 3, 4, 1_000)
    assert query.keys is not None
    assert (query.keys.by, query.keys.one_per_pane) == ("header:lens", True)
    assert query_like(calibration, "other", 3, 4).topic == "other"
    hidden = HiddenKeys(Stored.HASHED, secret=b"0123456789abcdef")
    assert query_like(calibration, None, 3, 4, hidden=hidden).hidden == hidden
