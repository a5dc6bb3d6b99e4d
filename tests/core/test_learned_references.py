import numpy as np
import pytest

from nap_stream.core.learned_references import (
    CENTER_BLOCKS,
    LEARN_BLOCKS,
    NEEDED_BLOCKS,
    LearnedReferences,
)

KINDS = 2


def learn(of: LearnedReferences, place: int, values: list[float], records: int = 100) -> None:
    for value in values:
        sums = np.full((1, 3), value * records)
        of.learn(np.array([place]), 1, np.array([records]), sums)


def test_the_largest_blocks_after_the_first_ones_are_kept() -> None:
    learned = LearnedReferences(KINDS)
    place = int(learned.add(("a",))[0])
    learn(learned, place, [0.1, 0.3] * (CENTER_BLOCKS // 2))
    later = [number / 100 for number in range(LEARN_BLOCKS)]
    learn(learned, place, [*later, 0.99])
    places = np.array([place])
    assert learned.blocks(places).tolist() == [[0, NEEDED_BLOCKS]]
    assert (learned.knows(places, 0)[0], learned.knows(places, 1)[0]) == (False, True)
    found = learned.references(places, 1)
    np.testing.assert_allclose(found.center, [[0.2] * 3], rtol=1e-6)
    assert found.prior.tolist() == [100]
    # The largest is 0.39, the fifth 0.35; one more was no longer learned. s = (x - n c) / (n + b).
    np.testing.assert_allclose(found.thresholds, [[0.095, 0.075] * 3], rtol=1e-5)
    assert learned.shares(places, 1) == pytest.approx([0.2])


def test_small_blocks_are_not_ranked() -> None:
    learned = LearnedReferences(KINDS)
    place = int(learned.add(("a",))[0])
    learn(learned, place, [0.1] * CENTER_BLOCKS)
    learn(learned, place, [0.9], records=49)
    assert learned.blocks(np.array([place]))[0, 1] == CENTER_BLOCKS
    learn(learned, place, [0.9], records=50)
    assert learned.blocks(np.array([place]))[0, 1] == CENTER_BLOCKS + 1


def test_only_unfinished_kinds_are_forgotten() -> None:
    learned = LearnedReferences(KINDS)
    places = learned.add(("a", "b"))
    for place in places.tolist():
        learn(learned, place, [0.1] * (NEEDED_BLOCKS if place == places[0] else 20))
        learned.learn(np.array([place]), 0, np.array([9]), np.ones((1, 3)))
    learned.forget_unfinished(places)
    assert learned.blocks(places).tolist() == [[0, NEEDED_BLOCKS], [0, 0]]


def test_a_place_that_is_given_again_knows_nothing() -> None:
    learned = LearnedReferences(KINDS)
    place = int(learned.add(("a",))[0])
    learn(learned, place, [0.1] * 20)
    learned.remove(("a", "never seen"))
    assert learned.blocks(learned.add(("b",))).tolist() == [[0, 0]]
    assert len(learned) == 1
