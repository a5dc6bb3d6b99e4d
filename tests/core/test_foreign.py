import numpy as np
import pytest
from numpy.typing import NDArray

from nap_stream.core.blocks import Blocks, coarser
from nap_stream.core.foreign import check_ms, foreign_in, odd_parts, without
from nap_stream.core.tails import BIN_COUNT, bins_of
from nap_stream.core.time_kinds import TimeKinds

MINUTE_MS = 60_000


def blocks_of(bins: NDArray[np.int64], *, block_ms: int = MINUTE_MS) -> Blocks:
    """Blocks of keys a, b, …, from records by bin, int64 (keys, blocks, BIN_COUNT).

    The first two bins are flagged. Those of the stream are the sums.
    """
    keys, size = bins.shape[:2]
    whole = np.concatenate((bins.sum(axis=0, keepdims=True), bins)).reshape(-1, BIN_COUNT)
    starts = np.tile(np.arange(size) * block_ms, keys + 1)
    names = ("", *(chr(97 + number) for number in range(keys)))
    number = np.repeat(np.arange(keys + 1), size)
    return Blocks(
        number, starts, whole.sum(axis=1), whole[:, :2].sum(axis=1), whole, names, block_ms
    )


def usual(keys: int, size: int) -> NDArray[np.int64]:
    """A hundred records a block, of which five are flagged."""
    bins = np.zeros((keys, size, BIN_COUNT), np.int64)
    bins[:, :, 1] = 5
    bins[:, :, 5] = 95
    return bins


def test_an_odd_block_is_found_with_the_records_that_the_others_do_not_explain() -> None:
    bins = usual(2, 12)
    # 60 of 100 records lie in the lowest bin, where the other blocks have none.
    bins[1, 7] = 0
    bins[1, 7, [0, 1, 5]] = 60, 2, 38
    blocks = blocks_of(bins)
    found = foreign_in(blocks, TimeKinds())
    (row,) = np.flatnonzero(found.is_odd)
    assert (blocks.keys[blocks.key[row]], blocks.start_ms[row]) == ("b", 7 * MINUTE_MS)
    assert found.records[row] == pytest.approx(60)
    assert found.records.sum() == found.records[row]
    # The stream's blocks are those of its keys.
    assert found.judged.tolist() == [False] * 12 + [True] * 24


def test_scores_that_are_higher_than_usual_are_foreign_too() -> None:
    bins = usual(1, 12)
    bins[0, 3] = 0
    bins[0, 3, 9] = 100
    found = foreign_in(blocks_of(bins), TimeKinds())
    assert found.records[12 + 3] == pytest.approx(100)


def test_without_keys_the_blocks_of_the_stream_are_judged() -> None:
    bins = usual(1, 12)
    bins[0, 3, 0] = 90
    whole = blocks_of(bins).of("")
    stream = Blocks(
        whole.key, whole.start_ms, whole.records, whole.flagged, whole.bins, ("",), MINUTE_MS
    )
    found = foreign_in(stream, TimeKinds())
    assert np.flatnonzero(found.is_odd).tolist() == [3]
    # 190 records, of which 90 are in a bin that the others do not have.
    assert found.records[3] == pytest.approx(90)


def test_what_chance_does_is_not_odd() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(5, 200, 30))
    bins = np.stack([(bins_of(p) == number).sum(axis=2) for number in range(BIN_COUNT)], axis=2)
    assert not foreign_in(blocks_of(bins), TimeKinds()).is_odd.any()


def test_few_blocks_tell_nothing() -> None:
    bins = usual(1, 9)
    bins[0, 3, 0] = 90
    found = foreign_in(blocks_of(bins), TimeKinds())
    assert not found.judged.any()
    assert not found.is_odd.any()


def test_a_night_is_not_foreign_to_other_nights() -> None:
    bins = usual(1, 96)
    hours = np.arange(96) % 24
    bins[0, hours < 6] = 0
    bins[0, hours < 6, 1] = 60
    bins[0, hours < 6, 5] = 40
    blocks = blocks_of(bins, block_ms=3_600_000)
    assert foreign_in(blocks, TimeKinds()).is_odd.sum() == 24
    assert not foreign_in(blocks, TimeKinds((0, 6))).is_odd.any()


def test_bursts_that_are_usual_make_the_blocks_long() -> None:
    # Bursts of a minute in which all is flagged, seven in more than two hours.
    rng = np.random.default_rng(0)
    bins = usual(4, 8_000)
    bins[:, :, 1], bins[:, :, 5] = 0, 100
    for key in range(4):
        for start in rng.choice(7_940, 7, replace=False):
            bins[key, start : start + 60, 1] = 100
            bins[key, start : start + 60, 5] = 0
    fine = blocks_of(bins, block_ms=1_000)
    assert check_ms(fine, TimeKinds()) in {600_000, 900_000}
    # Without them it is a fiftieth of the span, and with few foreign records too.
    bins = usual(4, 8_000)
    bins[2, 4_000:4_060] = 0
    bins[2, 4_000:4_060, 0] = 100
    assert check_ms(blocks_of(bins, block_ms=1_000), TimeKinds()) <= 600_000


def test_rare_records_make_the_blocks_long() -> None:
    bins = np.zeros((1, 1_000, BIN_COUNT), np.int64)
    bins[0, :, 5] = 1
    # Twenty records of one a second; a fiftieth of the span is as much.
    assert check_ms(blocks_of(bins, block_ms=1_000), TimeKinds()) == 20_000


def test_what_is_left_out_of_a_key_is_left_out_of_the_stream() -> None:
    blocks = blocks_of(usual(2, 12))
    is_odd = (blocks.key == 2) & (blocks.start_ms == 3 * MINUTE_MS)
    left = without(blocks, is_odd)
    assert len(left) == len(blocks) - 1
    assert left.of("").records.tolist() == [200] * 3 + [100] + [200] * 8
    assert left.of("").flagged.tolist() == [10] * 3 + [5] + [10] * 8
    assert left.of("b").start_ms.tolist() == [n * MINUTE_MS for n in range(12) if n != 3]
    # Where nothing is left, there is no block.
    assert len(without(blocks, blocks.key > 0)) == 0


@pytest.mark.parametrize("block_ms", [700, 90_000_000])
def test_blocks_must_be_of_a_length_of_the_grid(block_ms: int) -> None:
    with pytest.raises(ValueError, match="a length of the grid"):
        check_ms(blocks_of(usual(1, 12), block_ms=block_ms), TimeKinds())


def test_the_short_blocks_of_an_odd_one_are_odd() -> None:
    fine = blocks_of(usual(2, 12))
    # A gap: block by block they cannot be counted off.
    fine = fine.chosen((fine.key != 1) | (fine.start_ms != 4 * MINUTE_MS))
    blocks = coarser(fine, 3 * MINUTE_MS)
    is_odd = (blocks.key == 2) & (blocks.start_ms == 6 * MINUTE_MS)
    odd = fine.chosen(odd_parts(fine, blocks, is_odd))
    assert odd.key.tolist() == [2] * 3
    assert odd.start_ms.tolist() == [n * MINUTE_MS for n in (6, 7, 8)]
